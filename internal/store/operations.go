package store

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/store/db"
)

func toOperation(r db.Operation) core.Operation {
	return core.Operation{
		ID: r.ID, Seq: r.Seq, ProjectID: r.ProjectID, BranchID: r.BranchID, EndpointID: r.EndpointID,
		Action: core.OperationAction(r.Action), Status: core.OperationStatus(r.Status), Error: r.Error,
		FailuresCount: int(r.FailuresCount), CreatedAt: r.CreatedAt, UpdatedAt: r.UpdatedAt, StartedAt: r.StartedAt,
		TotalDuration: time.Duration(r.DurationMs) * time.Millisecond, RequestID: r.RequestID, Params: r.Params,
	}
}

// InsertOperation queues an operation behind those of its branch. It is running when nothing is before it, scheduling
// otherwise. The caller holds the branch's lock, which makes that true.
func (q Q) InsertOperation(ctx context.Context, op core.Operation) (core.Operation, error) {
	n, err := q.db.CountPendingOperations(ctx, op.BranchID)
	if err != nil {
		return core.Operation{}, internal(err)
	}
	status := core.OpRunning
	if n > 0 {
		status = core.OpScheduling
	}
	params := op.Params
	if params == nil {
		params = json.RawMessage("{}")
	}
	r, err := q.db.InsertOperation(ctx, db.InsertOperationParams{
		ID: op.ID, ProjectID: op.ProjectID, BranchID: op.BranchID, EndpointID: op.EndpointID, Action: string(op.Action),
		Status: string(status), Params: params, RequestID: op.RequestID,
	})
	return one(r, err, toOperation, "operation", op.ID)
}

// PendingOperations returns what is still to be done on a branch, in order.
func (q Q) PendingOperations(ctx context.Context, branchID string) ([]core.Operation, error) {
	r, err := q.db.ListPendingOperations(ctx, branchID)
	return many(r, err, toOperation)
}

// Operation returns one operation of a project.
func (q Q) Operation(ctx context.Context, projectID, id string) (core.Operation, error) {
	r, err := q.db.GetOperation(ctx, db.GetOperationParams{ID: id, ProjectID: projectID})
	return one(r, err, toOperation, "operation", id)
}

// OperationStatus returns where an operation stands, and its error.
func (q Q) OperationStatus(ctx context.Context, id string) (core.OperationStatus, string, error) {
	r, err := q.db.GetOperationStatus(ctx, id)
	if err != nil {
		_, err = one(r, err, func(db.GetOperationStatusRow) struct{} { return struct{}{} }, "operation", id)
		return "", "", err
	}
	return core.OperationStatus(r.Status), r.Error, nil
}

// ListOperations returns a project's operations that were created before a time, newest first.
func (q Q) ListOperations(ctx context.Context, projectID string, before time.Time, limit int) ([]core.Operation, error) {
	r, err := q.db.ListOperations(ctx, db.ListOperationsParams{ProjectID: projectID, Before: before, MaxRows: int32(limit)})
	return many(r, err, toOperation)
}

// ClaimHead makes the first open operation of a branch this server's; ok is false when there is none, another server has it,
// or the server does not hold the project.
func (q Q) ClaimHead(ctx context.Context, branchID string, instance int64) (op core.Operation, ok bool, err error) {
	r, err := q.db.ClaimHead(ctx, db.ClaimHeadParams{BranchID: branchID, Instance: instance})
	if errors.Is(err, pgx.ErrNoRows) {
		return core.Operation{}, false, nil
	}
	if err != nil {
		return core.Operation{}, false, internal(err)
	}
	return toOperation(r), true, nil
}

// EndOperation records the end of an operation; message is for users and empty unless it failed.
func (q Q) EndOperation(ctx context.Context, id string, status core.OperationStatus, message string) error {
	return internal(q.db.EndOperation(ctx, db.EndOperationParams{ID: id, Status: string(status), Error: message}))
}

// CountFailure records a failed attempt and returns how many there were.
func (q Q) CountFailure(ctx context.Context, id, message string) (int, error) {
	n, err := q.db.CountFailure(ctx, db.CountFailureParams{ID: id, Error: message})
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	return int(n), internal(err)
}

// SkipPending ends what waits behind a failed creation and needs it; what cleans up still runs.
func (q Q) SkipPending(ctx context.Context, branchID, reason string) error {
	return internal(q.db.SkipPending(ctx, db.SkipPendingParams{BranchID: branchID, Error: reason}))
}

// BusyBranches returns the branches that have open operations.
func (q Q) BusyBranches(ctx context.Context) ([]string, error) {
	ids, err := q.db.ListBusyBranches(ctx)
	return ids, internal(err)
}

// ReleaseDeadClaims gives back the operations that servers had claimed which do not live any more. Each counts as a failure.
func (s *Store) ReleaseDeadClaims(ctx context.Context, alive func(server int64) bool) error {
	ids, err := s.db.ListClaimants(ctx)
	if err != nil {
		return internal(err)
	}
	for _, id := range ids {
		if alive(id) {
			continue
		}
		if err := s.db.ReleaseClaims(ctx, id); err != nil {
			return internal(err)
		}
	}
	return nil
}

// LastOperation is the sequence number of the newest operation of a branch, 0 when there is none.
func (q Q) LastOperation(ctx context.Context, branchID string) (int64, error) {
	n, err := q.db.LastOperation(ctx, branchID)
	return n, internal(err)
}
