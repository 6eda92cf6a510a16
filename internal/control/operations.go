package control

import (
	"context"
	"time"

	"github.com/boughdb/bough/internal/core"
)

// cursorForm is the text of an operations cursor: the time of the last row, to the microsecond that is stored.
const cursorForm = "2006-01-02T15:04:05.000000Z"

// ListOperations returns a page of a project's operations, newest first; cursor is a time in RFC 3339.
func (s *Service) ListOperations(ctx context.Context, c core.Caller, projectID string, limit int, cursor string) (OperationPage, error) {
	if _, err := s.project(ctx, c, projectID); err != nil {
		return OperationPage{}, err
	}
	switch {
	case limit == 0:
		limit = 1000
	case limit < 1 || limit > 1000:
		return OperationPage{}, core.Invalidf("limit must be between 1 and 1000")
	}
	before := time.Now().Add(24 * time.Hour) // whatever the clocks say, nothing is later
	if cursor != "" {
		var err error
		if before, err = time.Parse(time.RFC3339Nano, cursor); err != nil {
			return OperationPage{}, core.Invalidf("cursor must be a time such as %s, from the page before", cursorForm)
		}
	}
	list, err := s.Store.ListOperations(ctx, projectID, before, limit)
	page := OperationPage{Operations: list}
	if n := len(list); n > 0 {
		page.Cursor = list[n-1].CreatedAt.UTC().Format(cursorForm)
	}
	return page, err
}

// GetOperation returns one operation.
func (s *Service) GetOperation(ctx context.Context, c core.Caller, projectID, id string) (core.Operation, error) {
	if _, err := s.project(ctx, c, projectID); err != nil {
		return core.Operation{}, err
	}
	return s.Store.Operation(ctx, projectID, id)
}
