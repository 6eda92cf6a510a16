package httpd

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/control"
	"github.com/boughdb/bough/internal/core"
)

// Metrics that a legacy answer has only when they are asked for.
var optionalMetrics = map[string]func(f *api.ConsumptionFrame, u core.Usage){
	"active_time_seconds":          nil,
	"compute_time_seconds":         nil,
	"written_data_bytes":           nil,
	"synthetic_storage_size_bytes": nil,
	dataStorageHours:               func(f *api.ConsumptionFrame, u core.Usage) { f.DataStorageBytesHour = new(u.StorageHours()) },
	"logical_size_bytes":           func(f *api.ConsumptionFrame, u core.Usage) { f.LogicalSizeBytes = new(u.Logical) },
	"logical_size_bytes_hour":      func(f *api.ConsumptionFrame, u core.Usage) { f.LogicalSizeBytesHour = new(u.LogicalHours) },
}

const dataStorageHours = "data_storage_bytes_hour"

// metricsV2 are the metrics of the second version. There are no private networks, no allowance of branches that some could
// be beyond, and no snapshots.
var metricsV2 = map[string]func(u core.Usage) int64{
	"compute_unit_seconds":           func(u core.Usage) int64 { return seconds(u.Compute) },
	"root_branch_bytes_month":        func(u core.Usage) int64 { return u.RootHours },
	"child_branch_bytes_month":       func(u core.Usage) int64 { return u.ChildHours },
	"instant_restore_bytes_month":    func(u core.Usage) int64 { return u.HistoryHours },
	"public_network_transfer_bytes":  func(u core.Usage) int64 { return u.Transferred },
	"private_network_transfer_bytes": func(core.Usage) int64 { return 0 },
	"extra_branches_month":           func(core.Usage) int64 { return 0 },
	"snapshot_storage_bytes_month":   func(core.Usage) int64 { return 0 },
}

// projectMetricsV2 are those that branches do not have.
var projectMetricsV2 = []string{"extra_branches_month", "snapshot_storage_bytes_month"}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }

// checkMetrics refuses what is no metric here.
func checkMetrics[T any](asked []string, known map[string]T, except ...string) error {
	var names []string
	for name := range known {
		if !slices.Contains(except, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	if len(asked) == 0 {
		return core.Invalidf("metrics: is required; choose of %s", strings.Join(names, ", "))
	}
	for _, name := range asked {
		if !slices.Contains(names, name) {
			return core.Invalidf("metrics: %s is not one of %s", clip(name), strings.Join(names, ", "))
		}
	}
	return nil
}

// GetConsumptionHistoryPerProject implements GET /consumption_history/projects.
func (h *handlers) GetConsumptionHistoryPerProject(ctx context.Context, req api.GetConsumptionHistoryPerProjectRequestObject) (api.GetConsumptionHistoryPerProjectResponseObject, error) {
	p := req.Params
	metrics := or(p.Metrics, nil)
	if len(metrics) > 0 {
		if err := checkMetrics(metrics, optionalMetrics); err != nil {
			return nil, err
		}
	} else if or(p.IncludeV1Metrics, false) {
		metrics = []string{dataStorageHours}
	}
	page, err := h.uc.ProjectConsumption(ctx, CallerFrom(ctx), control.Consumption{
		OrgID: or(p.OrgID, ""), ProjectIDs: or(p.ProjectIds, nil), From: p.From, To: p.To, Granularity: string(p.Granularity),
		Limit: or(p.Limit, 0), Cursor: or(p.Cursor, ""),
	})
	if err != nil {
		return nil, err
	}
	out := api.GetConsumptionHistoryPerProject200JSONResponse{Pagination: pagination(page.Cursor)}
	out.Projects = each(page.List, func(c control.Consumed) api.ProjectConsumption {
		return api.ProjectConsumption{ProjectID: c.ProjectID, Periods: each(h.periods(c), func(p consumedPeriod) api.ConsumptionPeriod {
			return api.ConsumptionPeriod{
				PeriodID: p.id, PeriodPlan: plan, PeriodStart: p.start, PeriodEnd: p.end,
				Consumption: each(p.frames, func(f control.ConsumedFrame) api.ConsumptionFrame { return consumptionFrame(f, metrics) }),
			}
		})}
	})
	return out, nil
}

func consumptionFrame(f control.ConsumedFrame, metrics []string) api.ConsumptionFrame {
	out := api.ConsumptionFrame{
		TimeframeStart: f.Start, TimeframeEnd: f.End, ActiveTimeSeconds: seconds(f.Active), ComputeTimeSeconds: seconds(f.Compute),
		WrittenDataBytes: f.Written, SyntheticStorageSizeBytes: f.Storage,
	}
	for _, name := range metrics {
		if set := optionalMetrics[name]; set != nil {
			set(&out, f.Usage)
		}
	}
	return out
}

// GetConsumptionHistoryPerProjectV2 implements GET /consumption_history/v2/projects.
func (h *handlers) GetConsumptionHistoryPerProjectV2(ctx context.Context, req api.GetConsumptionHistoryPerProjectV2RequestObject) (api.GetConsumptionHistoryPerProjectV2ResponseObject, error) {
	p := req.Params
	if err := checkMetrics(p.Metrics, metricsV2); err != nil {
		return nil, err
	}
	page, err := h.uc.ProjectConsumption(ctx, CallerFrom(ctx), control.Consumption{
		OrgID: p.OrgID, ProjectIDs: or(p.ProjectIds, nil), From: p.From, To: p.To, Granularity: string(p.Granularity),
		Limit: or(p.Limit, 0), Cursor: or(p.Cursor, ""),
	})
	if err != nil {
		return nil, err
	}
	return api.GetConsumptionHistoryPerProjectV2200JSONResponse{
		Pagination: pagination(page.Cursor),
		Projects: each(page.List, func(c control.Consumed) api.ProjectConsumptionV2 {
			return api.ProjectConsumptionV2{ProjectID: c.ProjectID, Periods: h.periodsV2(c, p.Metrics)}
		}),
	}, nil
}

// GetConsumptionHistoryPerBranchV2 implements GET /consumption_history/v2/branches.
func (h *handlers) GetConsumptionHistoryPerBranchV2(ctx context.Context, req api.GetConsumptionHistoryPerBranchV2RequestObject) (api.GetConsumptionHistoryPerBranchV2ResponseObject, error) {
	p := req.Params
	if err := checkMetrics(p.Metrics, metricsV2, projectMetricsV2...); err != nil {
		return nil, err
	}
	page, err := h.uc.BranchConsumption(ctx, CallerFrom(ctx), control.Consumption{
		OrgID: p.OrgID, ProjectIDs: p.ProjectIds, BranchIDs: or(p.BranchIds, nil), From: p.From, To: p.To,
		Granularity: string(p.Granularity), Limit: or(p.Limit, 0), Cursor: or(p.Cursor, ""),
	})
	if err != nil {
		return nil, err
	}
	return api.GetConsumptionHistoryPerBranchV2200JSONResponse{
		Pagination: pagination(page.Cursor),
		Branches: each(page.List, func(c control.Consumed) api.BranchConsumptionV2 {
			return api.BranchConsumptionV2{ProjectID: c.ProjectID, BranchID: c.BranchID, Periods: h.periodsV2(c, p.Metrics)}
		}),
	}, nil
}

func (h *handlers) periodsV2(c control.Consumed, metrics []string) []api.ConsumptionPeriodV2 {
	return each(h.periods(c), func(p consumedPeriod) api.ConsumptionPeriodV2 {
		return api.ConsumptionPeriodV2{
			PeriodID: p.id, PeriodPlan: plan, PeriodStart: p.start, PeriodEnd: p.end,
			Consumption: each(p.frames, func(f control.ConsumedFrame) api.ConsumptionFrameV2 {
				return api.ConsumptionFrameV2{TimeframeStart: f.Start, TimeframeEnd: f.End, Metrics: each(metrics, func(name string) api.ConsumptionMetric {
					return api.ConsumptionMetric{MetricName: name, Value: metricsV2[name](f.Usage)}
				})}
			}),
		}
	})
}

// consumedPeriod is the part of somebody's usage that lies in one consumption period.
type consumedPeriod struct {
	id     string
	start  time.Time
	end    *time.Time // nil while the period lasts
	frames []control.ConsumedFrame
}

func (h *handlers) periods(c control.Consumed) []consumedPeriod {
	var out []consumedPeriod
	for _, f := range c.Frames {
		start, end := core.ConsumptionPeriod(f.Start)
		id := core.DerivedUUID(c.ProjectID + " " + start.Format(time.DateOnly))
		if n := len(out); n == 0 || out[n-1].id != id {
			p := consumedPeriod{id: id, start: start}
			if c.CreatedAt.After(start) && c.CreatedAt.Before(end) {
				p.start = stamp(c.CreatedAt)
			}
			if !end.After(h.now()) {
				p.end = &end
			}
			out = append(out, p)
		}
		out[len(out)-1].frames = append(out[len(out)-1].frames, f)
	}
	return out
}

func pagination(cursor string) *api.Pagination {
	if cursor == "" {
		return nil
	}
	return &api.Pagination{Cursor: cursor}
}
