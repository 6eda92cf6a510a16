package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/history"
	"github.com/boughdb/bough/internal/ops"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/store"
)

// Run does the work of an operation; see ops.Runner. Work on one branch is serial, so a step finds its branch to itself,
// except for forks of it, which take the same lock on its volume.
func (s *Service) Run(ctx context.Context, op core.Operation) (ops.Commit, error) {
	unlock, err := s.locks.lock(ctx, op.BranchID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	branch, err := s.Store.BranchByID(ctx, op.BranchID)
	if core.IsKind(err, core.KindNotFound) {
		return nil, nil // deleted with all its work
	}
	if err != nil {
		return nil, err
	}
	switch op.Action {
	case core.ActionCreateTimeline:
		return s.createTimeline(ctx, branch)
	case core.ActionCreateBranch:
		if branch.InitSource == initSchemaOnly {
			return s.createSchemaOnly(ctx, branch, op)
		}
		return s.createBranch(ctx, branch, op)
	case core.ActionStartCompute:
		return s.startCompute(ctx, branch, op)
	case core.ActionSuspendCompute:
		return s.suspendCompute(ctx, branch, op)
	case core.ActionApplyConfig:
		return s.applyConfig(ctx, branch, op)
	case core.ActionDeleteTimeline:
		return s.deleteTimeline(ctx, branch)
	}
	return nil, core.Errorf(core.KindNotImplemented, "", "the action %s is not known to this server", op.Action)
}

// Failed returns what to commit when an operation has failed for good; see ops.Runner.
func (s *Service) Failed(op core.Operation, cause error) ops.Commit {
	return func(ctx context.Context, q store.Q) error {
		switch op.Action {
		case core.ActionCreateTimeline, core.ActionCreateBranch:
			reason := core.UserMessage(cause)
			if err := q.BranchFailed(ctx, op.BranchID, reason); err != nil {
				return err
			}
			pending, err := q.PendingOperations(ctx, op.BranchID)
			if err != nil {
				return err
			}
			for _, p := range pending {
				if p.Action == core.ActionStartCompute {
					if err := q.EndpointIdle(ctx, p.EndpointID); err != nil {
						return err
					}
				}
			}
			return q.SkipPending(ctx, op.BranchID, "the branch was not created: "+reason)
		case core.ActionStartCompute, core.ActionSuspendCompute:
			if _, up := s.Computes.Lookup(op.EndpointID); up {
				_, err := q.SetEndpointPending(ctx, op.EndpointID, "")
				return err
			}
			return q.EndpointIdle(ctx, op.EndpointID)
		}
		return nil
	}
}

// Ended is told of every end; see ops.Runner.
func (s *Service) Ended(op core.Operation, status core.OperationStatus, took time.Duration) {
	s.Recorder.OperationEnded(op.Action, status, took)
	if status == core.OpFailed {
		s.Nudge()
	}
	if op.Action == core.ActionApplyConfig && status == core.OpFailed {
		// The rows are ahead of the catalog: the next look brings them back.
		s.seen.Delete(op.BranchID)
	}
}

func readControl(dataDir string) (history.ControlInfo, error) {
	c, err := postgres.ReadControl(dataDir)
	return history.ControlInfo{
		Checkpoint: c.Checkpoint, Redo: c.Redo, Timeline: c.Timeline, RecoveryTimeline: c.MinRecoveryTimeline,
		SegmentSize: c.WALSegmentSize, Clean: c.State == postgres.StateShutDown,
	}, err
}

func ref(b core.Branch) history.Ref {
	return history.Ref{Volume: b.VolumeID, Branch: b.ID, Incarnation: b.Incarnation}
}

// fork copies a parent's head into a child's volume and WAL directory.
func (s *Service) fork(ctx context.Context, parent, child history.Ref, running history.Source) (history.ForkResult, error) {
	return history.Fork(ctx, history.ForkRequest{
		Parent: parent, Child: child, Running: running, Volumes: s.Volumes, Dirs: s.WAL,
		ReadControl: readControl, CleanChild: postgres.CleanChild, Log: s.log,
	})
}

// templateRef names the volume that projects of a major version are copied from.
func templateRef(major int) history.Ref {
	name := fmt.Sprintf("template-%d", major)
	return history.Ref{Volume: name, Branch: name, Incarnation: 1}
}

// createTimeline makes a project's root branch from the template.
func (s *Service) createTimeline(ctx context.Context, b core.Branch) (ops.Commit, error) {
	if b.State == core.BranchReady {
		return nil, nil
	}
	project, err := s.Store.Project(ctx, b.ProjectID)
	if err != nil {
		return nil, gone(err)
	}
	build, err := s.build(ctx, project.PGVersion)
	if err != nil {
		return nil, err
	}
	if err := s.ensureTemplate(ctx, build); err != nil {
		return nil, err
	}
	template := templateRef(build.Major)
	res, err := s.fork(ctx, template, ref(b), nil)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, q store.Q) error {
		return errors.Join(q.BranchReady(ctx, b.ID, 0, nil, true), s.beginRoot(ctx, q, b, template, res),
			q.StartBranchMeter(ctx, b.ID, b.ProjectID, res.LSN))
	}, nil
}

// gone turns a missing row into an error that is not tried again with a message for the operation.
func gone(err error) error {
	if core.IsKind(err, core.KindNotFound) {
		return core.Errorf(core.KindGone, "", "deleted meanwhile: %s", core.UserMessage(err))
	}
	return err
}

// createBranch forks a branch from its parent, at the head or at the moment that the operation names.
func (s *Service) createBranch(ctx context.Context, b core.Branch, op core.Operation) (ops.Commit, error) {
	if b.State == core.BranchReady {
		return nil, nil
	}
	if b.ParentID == "" {
		return nil, core.Errorf(core.KindGone, "", "the parent branch was deleted meanwhile")
	}
	// The parent neither starts, stops nor goes away while it is copied; other copies may be made of it meanwhile.
	unlock, err := s.locks.share(ctx, b.ParentID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	parent, err := s.Store.BranchByID(ctx, b.ParentID)
	if err != nil {
		return nil, gone(err)
	}
	if err := s.checkData(parent); err != nil {
		return nil, err
	}
	var (
		src     history.Source
		primary *origin
	)
	id, up, err := s.running(ctx, parent.ID)
	if err != nil {
		return nil, err
	}
	if up {
		primary = &origin{s: s, id: id}
		defer primary.close(ctx)
		src = primary
	}
	var m moment
	if len(op.Params) > 0 {
		if err := json.Unmarshal(op.Params, &m); err != nil {
			return nil, core.Wrap(err, "control.create_branch", "")
		}
	}
	if !m.head() {
		return s.createBranchAt(ctx, parent, b, m, src)
	}
	res, err := s.fork(ctx, ref(parent), ref(b), src)
	if err != nil {
		return nil, err
	}
	if primary != nil {
		// Without the note the first start takes longer, nothing else.
		never, err := primary.NeverSubscribed(ctx)
		if err == nil && never {
			err = postgres.NoteNoSubscriptions(s.Volumes.Path(b.VolumeID))
		}
		if err != nil {
			s.log.Warn("cannot note that a branch has no subscriptions", "branch_id", b.ID, "error", err)
		}
	}
	return func(ctx context.Context, q store.Q) error {
		return errors.Join(q.BranchReady(ctx, b.ID, res.LSN, &res.Time, true), beginHistory(ctx, q, b, parent, res),
			q.StartBranchMeter(ctx, b.ID, b.ProjectID, res.LSN))
	}, nil
}

// deleteTimeline removes a branch: its computes, its files, its rows. Nothing else needs its files: children own copies,
// and hard links to its WAL keep what they point to.
func (s *Service) deleteTimeline(ctx context.Context, b core.Branch) (ops.Commit, error) {
	endpoints, err := s.Store.BranchEndpoints(ctx, b.ID)
	if err != nil {
		return nil, err
	}
	for _, e := range append(endpoints, core.Endpoint{ID: b.ID}) {
		if err := s.Computes.Stop(ctx, e.ID, compute.StopImmediate); err != nil {
			return nil, err
		}
		if isReplica(e) {
			s.replicas.stopped(e.ID, true)
			if err := s.removeReplica(ctx, e.ID); err != nil {
				return nil, err
			}
		}
		if err := os.RemoveAll(filepath.Join(s.RunDir, e.ID)); err != nil {
			return nil, core.Wrap(err, "control.delete", "")
		}
	}
	if err := s.dropHistory(ctx, b.ID); err != nil {
		return nil, err
	}
	if err := s.WAL.Delete(ctx, b.ID); err != nil {
		return nil, err
	}
	if err := s.Volumes.Delete(ctx, b.VolumeID); err != nil {
		return nil, err
	}
	s.seen.Delete(b.ID)
	s.measured.Delete(b.ID)
	return func(ctx context.Context, q store.Q) error {
		if err := q.AwaitProject(ctx, b.ProjectID); err != nil {
			return err
		}
		if err := q.DeleteBranch(ctx, b.ID); err != nil {
			return err
		}
		return q.DeleteProjectIfEmpty(ctx, b.ProjectID)
	}, nil
}
