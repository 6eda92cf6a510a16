package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/store"
)

// quota is a project's settings.quota; 0 is unlimited. All but the logical size are used up by the consumption period.
type quota struct {
	ActiveTime  int64 `json:"active_time_seconds"`
	ComputeTime int64 `json:"compute_time_seconds"`
	Written     int64 `json:"written_data_bytes"`
	Transferred int64 `json:"data_transfer_bytes"`
	LogicalSize int64 `json:"logical_size_bytes"` // of each branch
}

func (q quota) check() error {
	for name, v := range map[string]int64{
		"active_time_seconds": q.ActiveTime, "compute_time_seconds": q.ComputeTime, "written_data_bytes": q.Written,
		"data_transfer_bytes": q.Transferred, "logical_size_bytes": q.LogicalSize,
	} {
		if v < 0 {
			return core.Invalidf("settings.quota.%s must not be negative; 0 is unlimited", name)
		}
	}
	return nil
}

// quotaOf reads a project's quotas. They were checked when they were stored.
func quotaOf(settings json.RawMessage) quota {
	var s struct {
		Quota quota `json:"quota"`
	}
	_ = json.Unmarshal(settings, &s)
	return s.Quota
}

// exceeded says which quota a project has used up; nil when there is none. The end of the period resets it.
func (q quota) exceeded(used core.Usage, now time.Time) error {
	for _, l := range []struct {
		name        string
		used, limit int64
	}{
		{"active_time_seconds", int64(used.Active / time.Second), q.ActiveTime},
		{"compute_time_seconds", int64(used.Compute / time.Second), q.ComputeTime},
		{"written_data_bytes", used.Written, q.Written},
		{"data_transfer_bytes", used.Transferred, q.Transferred},
	} {
		if l.limit > 0 && l.used >= l.limit {
			_, reset := core.ConsumptionPeriod(now)
			return quotaExceeded("the project has used up its quota %s (%d of %d): its computes stay suspended until %s, or until the quota is raised",
				l.name, l.used, l.limit, reset.Format(time.RFC3339))
		}
	}
	return nil
}

// tooLarge says that a branch is larger than the quota lets it be; nil when it is not.
func (q quota) tooLarge(bytes int64) error {
	if q.LogicalSize == 0 || bytes <= q.LogicalSize {
		return nil
	}
	return quotaExceeded("the branch is larger than the project's quota logical_size_bytes (%d of %d): its computes stay suspended until the quota is raised",
		bytes, q.LogicalSize)
}

func quotaExceeded(format string, args ...any) error {
	return core.Errorf(core.KindUnprocessable, "QUOTA_EXCEEDED", format, args...)
}

// withinQuota refuses to run a compute of a branch when a quota is used up.
func (s *Service) withinQuota(ctx context.Context, q store.Q, projectID, branchID string) error {
	now := time.Now()
	month, _ := core.ConsumptionPeriod(now)
	limited, err := q.Quotas(ctx, month, []string{projectID})
	if err != nil || len(limited) == 0 {
		return err
	}
	quota := quotaOf(limited[0].Settings)
	if err := quota.exceeded(limited[0].Used, now); err != nil || quota.LogicalSize == 0 {
		return err
	}
	b, err := q.BranchByID(ctx, branchID)
	if err != nil || b.LogicalSize == nil {
		return err
	}
	return quota.tooLarge(*b.LogicalSize)
}

// EnforceQuotas suspends the computes of those of the projects that have used up a quota.
func (s *Service) EnforceQuotas(ctx context.Context, projectIDs []string) {
	if err := s.enforceQuotas(ctx, projectIDs); err != nil && ctx.Err() == nil {
		s.log.Error("cannot enforce quotas; the next look tries again", "error", err)
	}
}

func (s *Service) enforceQuotas(ctx context.Context, projectIDs []string) error {
	now := time.Now()
	month, _ := core.ConsumptionPeriod(now)
	limited, err := s.Store.Quotas(ctx, month, projectIDs)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range limited {
		quota := quotaOf(p.Settings)
		all := quota.exceeded(p.Used, now)
		if all == nil && quota.LogicalSize == 0 {
			continue
		}
		active, err := s.Store.ActiveEndpoints(ctx, p.ProjectID)
		if err != nil {
			return err
		}
		for id, size := range active {
			reason := all
			if reason == nil {
				reason = quota.tooLarge(size)
			}
			if reason == nil {
				continue
			}
			s.log.Info("suspending a compute: a quota is used up", "endpoint_id", id, "project_id", p.ProjectID, "reason", core.UserMessage(reason))
			if err := s.suspend(ctx, id, "quota: "+core.UserMessage(reason)); err != nil && !core.IsKind(err, core.KindNotFound) {
				errs = append(errs, fmt.Errorf("endpoint %s: %w", id, err))
			}
		}
	}
	return errors.Join(errs...)
}
