package control

import (
	"context"
	"time"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/store"
)

// pruneEvery is how often what is too old is removed; DefaultOperationsKeep is how long operations are kept.
const (
	pruneEvery            = time.Hour
	DefaultOperationsKeep = 4380 * time.Hour
)

// keep stores the answer of a call with an Idempotency-Key in the transaction that made what the answer tells of: whoever
// sends the call again gets the answer, and nothing is made twice, whenever the server is killed.
func keep(ctx context.Context, q store.Q, c core.Caller, made any) error {
	if c.Once == nil {
		return nil
	}
	answer, err := c.Once.Answer(made)
	if err != nil {
		return core.Wrap(err, "control.keep", "")
	}
	return q.KeepAnswer(ctx, c.KeyID, c.Once.Key, c.Once.Request, answer)
}

// Answered returns what an earlier call with an Idempotency-Key was answered; see core.Once.
func (s *Service) Answered(ctx context.Context, c core.Caller, key string) (request, answer []byte, found bool, err error) {
	return s.Store.Answer(ctx, c.KeyID, key)
}

// pruneLoop removes what is too old until ctx ends.
func (s *Service) pruneLoop(ctx context.Context) {
	keep := s.OperationsKeep
	if keep <= 0 {
		keep = DefaultOperationsKeep
	}
	tick := time.NewTicker(min(pruneEvery, max(keep, time.Second)))
	defer tick.Stop()
	for {
		n, err := s.Store.Prune(ctx, time.Now().Add(-keep))
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.log.Warn("cannot remove old operations", "error", err)
		case n > 0:
			s.log.Info("removed old operations", "count", n, "older_than", keep)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
