package control

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/postgres"
)

// sizeEvery is how often the logical size of a branch that is written to is looked at: that reads the size of every file.
// With a quota on it, it is at every look of the monitor.
const sizeEvery = time.Minute

// sizing is the last look at a branch's size.
type sizing struct {
	at  time.Time
	lsn core.LSN
}

// meterLook tells the meter what a look at a primary found, and looks at the sizes of its branch when they may have changed.
func (s *Service) meterLook(ctx context.Context, e core.Endpoint, lsn core.LSN, limited bool) error {
	s.Meter.Wrote(e.BranchID, lsn)
	var last sizing
	if v, ok := s.measured.Load(e.BranchID); ok {
		last = v.(sizing)
	}
	if lsn == last.lsn || !limited && time.Since(last.at) < sizeEvery {
		return nil
	}
	var size int64
	err := s.Computes.Do(ctx, e.ID, func(conn *pgx.Conn) (err error) {
		size, err = postgres.LogicalSize(ctx, conn)
		return err
	})
	if err == nil {
		err = s.Store.SetBranchSize(ctx, e.BranchID, size)
	}
	if err != nil {
		return err
	}
	s.measured.Store(e.BranchID, sizing{time.Now(), lsn})
	s.Meter.Sized(e.BranchID, s.keptWAL(ctx, e.BranchID))
	return nil
}

// keptWAL is how much WAL a branch keeps, in bytes; -1 when that cannot be found out.
func (s *Service) keptWAL(ctx context.Context, branchID string) int64 {
	kept, err := s.WAL.Kept(ctx, branchID)
	if err != nil {
		s.log.Warn("cannot measure the WAL of a branch", "branch_id", branchID, "error", err)
		return -1
	}
	return kept
}

// meterStopped tells the meter where the WAL of a branch ends whose compute has stopped, and what it keeps of it.
func (s *Service) meterStopped(ctx context.Context, b core.Branch) {
	s.measured.Delete(b.ID)
	if data, err := postgres.ReadControl(s.Volumes.Path(b.VolumeID)); err == nil && data.State == postgres.StateShutDown {
		s.Meter.Wrote(b.ID, data.Checkpoint)
	} // else the next start does
	s.Meter.Sized(b.ID, s.keptWAL(ctx, b.ID))
}

// meterEnd tells the meter what can be known of a compute that ended while no server watched: a clean end is on record.
func (s *Service) meterEnd(ctx context.Context, e core.Endpoint) {
	if isReplica(e) {
		return
	}
	b, err := s.Store.BranchByID(ctx, e.BranchID)
	if err != nil {
		return
	}
	if data, err := postgres.ReadControl(s.Volumes.Path(b.VolumeID)); err == nil && data.State == postgres.StateShutDown {
		s.Meter.EndedAway(e.ID, data.ModifiedAt, e.MinCU)
	}
	s.meterStopped(ctx, b)
}

// addProjectUsage fills in what projects have used in the consumption period.
func (s *Service) addProjectUsage(ctx context.Context, list ...*ProjectView) error {
	ids := make([]string, len(list))
	for i, p := range list {
		ids[i] = p.ID
	}
	month, _ := core.ConsumptionPeriod(time.Now())
	used, err := s.Store.ProjectUsage(ctx, month, ids)
	if err != nil {
		return err
	}
	for _, p := range list {
		p.Usage = used[p.ID]
	}
	return nil
}

// withUsage is a branch with what it has used in the consumption period.
func (s *Service) withUsage(ctx context.Context, b core.Branch) (core.Branch, error) {
	list := []core.Branch{b}
	err := s.addBranchUsage(ctx, b.ProjectID, list)
	return list[0], err
}

// addBranchUsage fills in what branches of a project have used in the consumption period.
func (s *Service) addBranchUsage(ctx context.Context, projectID string, list []core.Branch) error {
	ids := make([]string, len(list))
	for i, b := range list {
		ids[i] = b.ID
	}
	month, _ := core.ConsumptionPeriod(time.Now())
	used, err := s.Store.BranchUsage(ctx, month, projectID, ids)
	if err != nil {
		return err
	}
	for i, b := range list {
		list[i].Usage = used[b.ID]
	}
	return nil
}
