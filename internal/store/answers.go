package store

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/store/db"
)

// Answer returns what a call with an Idempotency-Key was answered in the last 24 hours: the hash of the call, and its answer
// as it was given to KeepAnswer.
func (q Q) Answer(ctx context.Context, keyID int64, key string) (request, answer []byte, found bool, err error) {
	r, err := q.db.GetAnswer(ctx, db.GetAnswerParams{KeyID: keyID, Key: key})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil, false, nil
	}
	return r.Request, r.Answer, err == nil, internal(err)
}

// KeepAnswer stores an answer for 24 hours, in the transaction that makes what it tells of. It waits for another transaction
// that stores one for the same call, and is KindConflict when that commits.
func (q Q) KeepAnswer(ctx context.Context, keyID int64, key string, request, answer []byte) error {
	if err := q.db.DropOldAnswer(ctx, db.DropOldAnswerParams{KeyID: keyID, Key: key}); err != nil {
		return internal(err)
	}
	err := q.db.InsertAnswer(ctx, db.InsertAnswerParams{KeyID: keyID, Key: key, Request: request, Answer: answer})
	if taken(err, "answers_pkey") {
		return core.Errorf(core.KindConflict, "IDEMPOTENCY_KEY_IN_USE", "a call with this Idempotency-Key has just been carried out; send it again")
	}
	return internal(err)
}

// Prune removes the answers that are too old, and operations that ended and were recorded before a time.
func (q Q) Prune(ctx context.Context, before time.Time) (operations int64, err error) {
	if _, err := q.db.PruneAnswers(ctx); err != nil {
		return 0, internal(err)
	}
	const batch = 10_000 // rows; keeps the transactions short
	for {
		n, err := q.db.PruneOperations(ctx, db.PruneOperationsParams{Before: before, MaxRows: batch})
		if operations += n; err != nil || n < batch {
			return operations, internal(err)
		}
	}
}
