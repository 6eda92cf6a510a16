package sdk

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/boughdb/bough/api"
)

// Done tells whether an operation will not change any more.
func Done(op Operation) bool {
	switch op.Status {
	case api.OperationStatusFinished, api.OperationStatusSkipped:
		return true
	}
	return failed(op)
}

func failed(op Operation) bool {
	switch op.Status {
	case api.OperationStatusFailed, api.OperationStatusCancelled:
		return true
	case api.OperationStatusError:
		return op.RetryAt == nil // with a time it will be tried again
	}
	return false
}

// WaitForOperation waits until an operation has ended. It returns an *OperationError when it ended without success.
func (c *Client) WaitForOperation(ctx context.Context, projectID, operationID string) (*Operation, error) {
	ops, err := c.WaitForOperations(ctx, []Operation{{ID: operationID, ProjectID: projectID}}, nil)
	if err != nil {
		return nil, err
	}
	return &ops[0], nil
}

// WaitForOperations waits until all operations have ended and returns them as they ended, in the same order. It stops
// at the first that ends without success, with an *OperationError. Progress, when not nil, is called from the same
// goroutine each time the state of an operation was seen to change. A server that cannot be reached is asked again for
// Options.MaxOutage: operations go on after a restart of the server.
func (c *Client) WaitForOperations(ctx context.Context, ops []Operation, progress func(Operation)) ([]Operation, error) {
	ops = append([]Operation(nil), ops...)
	for _, op := range ops {
		if failed(op) {
			return ops, &OperationError{Operation: op}
		}
	}
	// The wait between two looks grows only while nothing changes.
	wait, longest := c.pollWait, c.pollWait*40
	var lost time.Time // since when the server cannot be reached
	for {
		open, changed := 0, false
		for i := range ops {
			if Done(ops[i]) {
				continue
			}
			now, err := c.GetOperation(ctx, ops[i].ProjectID, ops[i].ID)
			if err != nil {
				if !outage(ctx, err) {
					return ops, fmt.Errorf("waiting for operation %s: %w", ops[i].ID, err)
				}
				if lost.IsZero() {
					lost = time.Now()
				}
				if time.Since(lost) > c.maxOutage {
					return ops, fmt.Errorf("waiting for operation %s: %w", ops[i].ID, err)
				}
				open++
				break
			}
			lost = time.Time{}
			if now.Status != ops[i].Status {
				changed = true
				if progress != nil {
					progress(*now)
				}
			}
			ops[i] = *now
			if failed(*now) {
				return ops, &OperationError{Operation: *now}
			}
			if !Done(*now) {
				open++
				// Later operations of the same call run after this one more often than not.
				break
			}
		}
		if open == 0 {
			return ops, nil
		}
		if changed {
			wait = c.pollWait
		}
		if err := sleep(ctx, wait); err != nil {
			return ops, fmt.Errorf("stopped waiting, the operations go on: %w", err)
		}
		wait = min(wait+wait/2, longest)
	}
}

// outage tells whether err means that the server cannot be reached or is starting, while ctx still lives.
func outage(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return false
	}
	if _, answered := errors.AsType[*Error](err); answered {
		return IsUnavailable(err)
	}
	return true
}
