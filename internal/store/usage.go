package store

import (
	"context"
	"encoding/json"
	"time"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/store/db"
)

// meterLock is the advisory lock under which usage is counted: what was counted is read before it is added to.
const meterLock = 0x626f756d // "boum"

// LockMeters keeps others from counting until the transaction ends.
func (q Q) LockMeters(ctx context.Context) error { return internal(q.db.LockMeters(ctx, meterLock)) }

// ComputeMeter says up to when the time of an endpoint's compute is counted.
type ComputeMeter struct {
	EndpointID string
	ProjectID  string    // "": there is no such endpoint
	BranchID   string    // of the endpoint
	Run        time.Time // start of the process; zero: nothing is counted yet
	SeenAt     time.Time
}

// ComputeMeters returns the meters of endpoints, deleted ones too.
func (q Q) ComputeMeters(ctx context.Context, endpointIDs []string) (map[string]ComputeMeter, error) {
	rows, err := q.db.ListComputeMeters(ctx, endpointIDs)
	if err != nil {
		return nil, internal(err)
	}
	out := make(map[string]ComputeMeter, len(rows))
	for _, r := range rows {
		m := ComputeMeter{EndpointID: r.EndpointID, ProjectID: r.ProjectID, BranchID: r.BranchID}
		if r.Run.Unix() != 0 {
			m.Run, m.SeenAt = r.Run, r.SeenAt
		}
		out[m.EndpointID] = m
	}
	return out, nil
}

// SaveComputeMeters writes them back.
func (q Q) SaveComputeMeters(ctx context.Context, meters []ComputeMeter) error {
	var p db.SaveComputeMetersParams
	for _, m := range meters {
		p.EndpointIds, p.ProjectIds, p.BranchIds = append(p.EndpointIds, m.EndpointID), append(p.ProjectIds, m.ProjectID), append(p.BranchIds, m.BranchID)
		p.Runs, p.Seen = append(p.Runs, m.Run), append(p.Seen, m.SeenAt)
	}
	return internal(q.db.SaveComputeMeters(ctx, p))
}

// BranchMeter says up to where the WAL of a branch is counted, and how large the branch is, in bytes.
type BranchMeter struct {
	BranchID  string
	ProjectID string
	Root      bool      // it has no parent
	Since     time.Time // when LSN was last set to where the branch's own WAL begins
	LSN       core.LSN
	Written   int64 // since then
	Sizes
	Hour    time.Time // the last hour whose byte-hours are counted
	Largest Sizes     // seen in it
	Now     *int64    // the logical size that the branch has by its own row; not written
}

// Sizes are what a branch takes, in bytes.
type Sizes struct {
	Logical int64
	Data    int64 // what it adds to its project
	History int64 // WAL that is kept
}

// StartBranchMeter begins to count a branch's WAL at lsn, where it forked.
func (q Q) StartBranchMeter(ctx context.Context, branchID, projectID string, lsn core.LSN) error {
	hour, _ := core.Frame(core.GrainHour, time.Now())
	return internal(q.db.StartBranchMeter(ctx, db.StartBranchMeterParams{BranchID: branchID, ProjectID: projectID, Lsn: int64(lsn), Hour: hour}))
}

// BranchMeters returns and locks the meters of branches. Those that had none get one that begins at their LSN.
func (q Q) BranchMeters(ctx context.Context, lsns map[string]core.LSN) ([]BranchMeter, error) {
	hour, _ := core.Frame(core.GrainHour, time.Now())
	add := db.AddBranchMetersParams{Hour: hour}
	ids := make([]string, 0, len(lsns))
	for id, lsn := range lsns {
		ids = append(ids, id)
		if lsn > 0 {
			add.Ids, add.Lsns = append(add.Ids, id), append(add.Lsns, int64(lsn))
		}
	}
	if err := q.db.AddBranchMeters(ctx, add); err != nil {
		return nil, internal(err)
	}
	rows, err := q.db.LockBranchMeters(ctx, ids)
	return many(rows, err, func(r db.LockBranchMetersRow) BranchMeter {
		return BranchMeter{
			BranchID: r.BranchID, ProjectID: r.ProjectID, Root: r.Root, Since: r.Since, LSN: core.LSN(r.Lsn), Written: r.Written,
			Sizes: Sizes{r.Logical, r.Data, r.History}, Hour: r.Hour.UTC(), Largest: Sizes{r.HourLogical, r.HourData, r.HourHistory}, Now: r.LogicalSize,
		}
	})
}

// SaveBranchMeters writes them back.
func (q Q) SaveBranchMeters(ctx context.Context, meters []BranchMeter) error {
	var p db.SaveBranchMetersParams
	for _, m := range meters {
		p.Ids, p.Lsns, p.Written = append(p.Ids, m.BranchID), append(p.Lsns, int64(m.LSN)), append(p.Written, m.Written)
		p.Logical, p.Data, p.History = append(p.Logical, m.Logical), append(p.Data, m.Data), append(p.History, m.History)
		p.HourLogical, p.HourData = append(p.HourLogical, m.Largest.Logical), append(p.HourData, m.Largest.Data)
		p.HourHistory = append(p.HourHistory, m.Largest.History)
	}
	return internal(q.db.SaveBranchMeters(ctx, p))
}

// AddUsage adds to the hours, days and months of branches and of their projects. A frame's start may be any time in it.
func (q Q) AddUsage(ctx context.Context, frames []core.UsageFrame) error {
	if len(frames) == 0 {
		return nil
	}
	var p db.AddUsageParams
	for _, f := range frames {
		p.ProjectIds, p.BranchIds, p.At = append(p.ProjectIds, f.ProjectID), append(p.BranchIds, f.BranchID), append(p.At, f.Start)
		p.Active, p.Compute = append(p.Active, f.Active.Microseconds()), append(p.Compute, f.Compute.Microseconds())
		p.Written, p.Transfer = append(p.Written, f.Written), append(p.Transfer, f.Transferred)
		p.Root, p.Child = append(p.Root, f.RootHours), append(p.Child, f.ChildHours)
		p.History, p.Logical = append(p.History, f.HistoryHours), append(p.Logical, f.LogicalHours)
	}
	return internal(q.db.AddUsage(ctx, p))
}

// CountStorageHours counts the byte-hours of up to limit branches for the hours up to the one that begins at hour, in which
// nobody looked at them or nothing changed. It returns how many branches there were.
func (q Q) CountStorageHours(ctx context.Context, hour time.Time, limit int) (int, error) {
	ids, err := q.db.BranchesBeforeHour(ctx, db.BranchesBeforeHourParams{Hour: hour, MaxRows: int32(limit)})
	if err != nil || len(ids) == 0 {
		return 0, internal(err)
	}
	projects, err := q.db.CountStorageHours(ctx, db.CountStorageHoursParams{Hour: hour, Ids: ids, HoursFrom: hour.Add(-keepHours)})
	if err != nil {
		return 0, internal(err)
	}
	if err := q.db.AdvanceStorageHour(ctx, db.AdvanceStorageHourParams{Hour: hour, Ids: ids}); err != nil {
		return 0, internal(err)
	}
	return len(ids), q.SetProjectStorage(ctx, hour, projects)
}

// SetProjectStorage notes how large projects are now in the frames that hold at, where there are any.
func (q Q) SetProjectStorage(ctx context.Context, at time.Time, projectIDs []string) error {
	return internal(q.db.SetProjectStorage(ctx, db.SetProjectStorageParams{Hour: at, ProjectIds: projectIDs}))
}

func toUsageFrame(r db.Usage) core.UsageFrame {
	return core.UsageFrame{
		ProjectID: r.ProjectID, BranchID: r.BranchID, Start: r.Start.UTC(),
		Usage: core.Usage{
			Active: time.Duration(r.ActiveUs) * time.Microsecond, Compute: time.Duration(r.ComputeUs) * time.Microsecond,
			Written: r.WrittenBytes, Transferred: r.TransferBytes, RootHours: r.RootByteHours, ChildHours: r.ChildByteHours,
			HistoryHours: r.HistoryByteHours, LogicalHours: r.LogicalByteHours, Storage: r.StorageBytes, Logical: r.LogicalBytes,
		},
	}
}

// ProjectUsage returns what projects used since the month began, and how much they store now.
func (q Q) ProjectUsage(ctx context.Context, month time.Time, projectIDs []string) (map[string]core.Usage, error) {
	rows, err := q.db.ProjectUsage(ctx, db.ProjectUsageParams{ProjectIds: projectIDs, Month: month})
	if err != nil {
		return nil, internal(err)
	}
	out := make(map[string]core.Usage, len(projectIDs))
	for _, r := range rows {
		out[r.ProjectID] = toUsageFrame(r).Usage
	}
	sizes, err := q.db.ProjectStorage(ctx, projectIDs)
	if err != nil {
		return nil, internal(err)
	}
	for _, s := range sizes {
		u := out[s.ProjectID]
		u.Storage = s.Storage
		out[s.ProjectID] = u
	}
	return out, nil
}

// BranchUsage returns what branches of a project used since the month began.
func (q Q) BranchUsage(ctx context.Context, month time.Time, projectID string, branchIDs []string) (map[string]core.Usage, error) {
	rows, err := q.db.BranchUsage(ctx, db.BranchUsageParams{ProjectID: projectID, BranchIds: branchIDs, Month: month})
	if err != nil {
		return nil, internal(err)
	}
	out := make(map[string]core.Usage, len(rows))
	for _, r := range rows {
		out[r.BranchID] = toUsageFrame(r).Usage
	}
	return out, nil
}

// UsageOwner is a project or a branch that has a usage history.
type UsageOwner struct {
	ProjectID string
	BranchID  string // "" for a project
	CreatedAt time.Time
}

// UsageProjects returns a page of the projects of organizations, the newest first: those that come after one, among ids
// when there are any.
func (q Q) UsageProjects(ctx context.Context, orgIDs, ids []string, after UsageOwner, limit int) ([]UsageOwner, error) {
	r, err := q.db.ListUsageProjects(ctx, db.ListUsageProjectsParams{
		OrgIds: orgIDs, Ids: nonNil(ids), AfterID: after.ProjectID, AfterCreated: after.CreatedAt, MaxRows: int32(limit),
	})
	return many(r, err, func(r db.ListUsageProjectsRow) UsageOwner { return UsageOwner{ProjectID: r.ID, CreatedAt: r.CreatedAt} })
}

// UsageBranches returns a page of the branches of projects, ordered by project and id.
func (q Q) UsageBranches(ctx context.Context, orgIDs, projectIDs, ids []string, after UsageOwner, limit int) ([]UsageOwner, error) {
	r, err := q.db.ListUsageBranches(ctx, db.ListUsageBranchesParams{
		OrgIds: orgIDs, ProjectIds: projectIDs, Ids: nonNil(ids), AfterProject: after.ProjectID, AfterID: after.BranchID, MaxRows: int32(limit),
	})
	return many(r, err, func(r db.ListUsageBranchesRow) UsageOwner {
		return UsageOwner{ProjectID: r.ProjectID, BranchID: r.ID, CreatedAt: r.CreatedAt}
	})
}

// UsageHistory returns the frames of a grain that begin at or after since and before until, for projects or for branches as
// the owners say, in order of time.
func (q Q) UsageHistory(ctx context.Context, owners []UsageOwner, grain string, since, until time.Time) ([]core.UsageFrame, error) {
	if len(owners) == 0 {
		return nil, nil
	}
	var projects, branches []string
	for _, o := range owners {
		projects, branches = append(projects, o.ProjectID), append(branches, o.BranchID)
	}
	if owners[0].BranchID == "" {
		r, err := q.db.UsageHistory(ctx, db.UsageHistoryParams{ProjectIds: projects, Grain: grain, Since: since, Until: until})
		return many(r, err, toUsageFrame)
	}
	r, err := q.db.BranchUsageHistory(ctx, db.BranchUsageHistoryParams{ProjectIds: projects, BranchIds: branches, Grain: grain, Since: since, Until: until})
	return many(r, err, toUsageFrame)
}

// ProjectQuota is what a project with quotas has used since the month began.
type ProjectQuota struct {
	ProjectID string
	Settings  json.RawMessage
	Used      core.Usage
}

// Quotas returns those of the projects that have quotas in their settings.
func (q Q) Quotas(ctx context.Context, month time.Time, projectIDs []string) ([]ProjectQuota, error) {
	r, err := q.db.ListQuotas(ctx, db.ListQuotasParams{Month: month, ProjectIds: projectIDs})
	return many(r, err, func(r db.ListQuotasRow) ProjectQuota {
		return ProjectQuota{r.ID, r.Settings, core.Usage{
			Active: time.Duration(r.ActiveUs) * time.Microsecond, Compute: time.Duration(r.ComputeUs) * time.Microsecond,
			Written: r.WrittenBytes, Transferred: r.TransferBytes,
		}}
	})
}

// ActiveEndpoints maps the endpoints of a project that are active, with nothing pending, to their branches' logical sizes.
func (q Q) ActiveEndpoints(ctx context.Context, projectID string) (map[string]int64, error) {
	rows, err := q.db.ListActiveByProject(ctx, projectID)
	if err != nil {
		return nil, internal(err)
	}
	out := make(map[string]int64, len(rows))
	for _, r := range rows {
		out[r.ID] = r.LogicalSize
	}
	return out, nil
}

// How long usage is kept: longer than anybody may ask for.
const (
	keepHours  = 8 * 24 * time.Hour
	keepDays   = 62 * 24 * time.Hour
	keepMonths = 400 * 24 * time.Hour
)

// PruneUsage removes what is too old, and what is left of projects that are gone.
func (q Q) PruneUsage(ctx context.Context, now time.Time) error {
	if _, err := q.db.PruneUsage(ctx, db.PruneUsageParams{
		Hours: now.Add(-keepHours), Days: now.Add(-keepDays), Months: now.Add(-keepMonths),
	}); err != nil {
		return internal(err)
	}
	if _, err := q.db.PruneOrphanUsage(ctx, now.Add(-keepDays)); err != nil {
		return internal(err)
	}
	return internal(q.db.PruneMeters(ctx, now.Add(-time.Hour)))
}

func nonNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
