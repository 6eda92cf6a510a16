package control

import (
	"context"

	"github.com/boughdb/bough/internal/core"
)

// runtime says how an endpoint's compute is doing, nil when there is nothing to say. It never wakes a compute, and what
// cannot be found out is left out: it decorates an answer.
func (s *Service) runtime(ctx context.Context, e core.Endpoint) *EndpointRuntime {
	var r EndpointRuntime
	if size, ok := s.Computes.Size(e.ID); ok {
		r.SizeCU, r.SizeNote = &size.CU, size.Note
	}
	if isReplica(e) {
		if lag, ok := s.lag(ctx, e); ok {
			r.LagBytes, r.Lag = &lag.Bytes, &lag.Delay
		}
	}
	if r == (EndpointRuntime{}) {
		return nil
	}
	return &r
}
