package control

import (
	"context"
	"time"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/store"
)

const (
	maxTTL = 30 * 24 * time.Hour
	// expiryLook bounds how late a date is seen that another server on the same control database has set, and how soon a
	// deletion that did not succeed is tried again.
	expiryLook  = time.Minute
	expiryBatch = 100
)

// expireAt sets when a branch is deleted; nil takes the date away. The API shows whole seconds.
func expireAt(b *core.Branch, at *time.Time, now time.Time) error {
	if at == nil {
		b.ExpiresAt, b.TTL = nil, 0
		return nil
	}
	switch {
	case !at.After(now):
		return core.Invalidf("branch.expires_at must be in the future; it is %s now", now.UTC().Format(time.RFC3339))
	case at.Sub(now) > maxTTL:
		return core.Invalidf("branch.expires_at must be at most 30 days ahead: %s is", now.Add(maxTTL).UTC().Format(time.RFC3339))
	}
	b.ExpiresAt = new(at.UTC().Truncate(time.Second))
	b.TTL = max(at.Sub(now).Round(time.Second), time.Second)
	return nil
}

// checkExpiring refuses a date for a branch that an API caller could not delete.
func checkExpiring(b core.Branch, children int64) error {
	if b.ExpiresAt == nil {
		return nil
	}
	var why string
	switch {
	case b.Default:
		why = "it is the project's default branch"
	case b.ParentID == "" && b.InitSource != initSchemaOnly:
		why = "it is a root branch"
	case b.Protected:
		why = "it is protected"
	case children > 0:
		why = "it has children"
	default:
		return nil
	}
	return core.Errorf(core.KindUnprocessable, "BRANCH_EXPIRATION_REFUSED", "branch %s cannot expire: %s", b.ID, why)
}

// staysForGood refuses what a branch that expires cannot become.
func staysForGood(b core.Branch, what string) error {
	if b.ExpiresAt == nil {
		return nil
	}
	return core.Errorf(core.KindUnprocessable, "BRANCH_EXPIRES",
		"branch %s is deleted at %s, so it cannot %s; set its expires_at to null first", b.ID, b.ExpiresAt.UTC().Format(time.RFC3339), what)
}

// noteExpiry wakes the loop that deletes what is due.
func (s *Service) noteExpiry(b core.Branch) {
	if b.ExpiresAt == nil {
		return
	}
	select {
	case s.expiry <- struct{}{}:
	default: // it looks anyway
	}
}

// expiryLoop deletes branches when they are due, until ctx ends: at once those that came due while no server ran.
func (s *Service) expiryLoop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-s.expiry:
		}
		timer.Reset(s.expire(ctx))
	}
}

// expire deletes what is due and returns after how long to look again.
func (s *Service) expire(ctx context.Context) time.Duration {
	list, err := s.Store.Expiring(ctx, expiryBatch)
	if err != nil && ctx.Err() == nil {
		s.log.Warn("cannot look for branches that expire", "error", err)
	}
	failed := err != nil
	for _, e := range list {
		if wait := time.Until(e.At); wait > 0 {
			return min(wait, expiryLook)
		}
		if err := s.expireBranch(ctx, e); err != nil && ctx.Err() == nil {
			s.log.Warn("cannot delete a branch that has expired", "branch_id", e.ID, "error", err)
			failed = true
		}
	}
	if len(list) == expiryBatch && !failed {
		return 0
	}
	return expiryLook
}

// expireBranch deletes a branch the way an API call does, if it is still due.
func (s *Service) expireBranch(ctx context.Context, e store.Expiring) error {
	deleted := false
	err := s.Store.Tx(ctx, func(q store.Q) error {
		deleted = false
		b, err := q.LockBranch(ctx, e.ProjectID, e.ID)
		if core.IsKind(err, core.KindNotFound) || err == nil && (b.ExpiresAt == nil || b.ExpiresAt.After(time.Now())) {
			return nil
		}
		if err == nil {
			err = deletable(ctx, q, b)
		}
		if err != nil {
			return err
		}
		deleted = true
		_, _, err = s.markBranchDeleting(ctx, q, core.Caller{}, e.ProjectID, e.ID)
		return err
	})
	if err == nil && deleted {
		s.log.Info("a branch has expired and is deleted", "branch_id", e.ID, "expired_at", e.At.UTC())
		s.Queue.Kick(e.ID)
	}
	return err
}
