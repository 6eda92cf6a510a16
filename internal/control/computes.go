package control

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/history"
	"github.com/boughdb/bough/internal/ops"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/store"
)

// source opens a running compute as the origin of a copy.
func (s *Service) source(ctx context.Context, computeID string) (*postgres.Source, error) {
	conn, err := s.Computes.Conn(ctx, computeID, postgres.AdminDatabase)
	if err != nil {
		return nil, err
	}
	var version int
	if err := conn.QueryRow(ctx, "SELECT current_setting('server_version_num')::int").Scan(&version); err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		return nil, core.Wrap(err, "control.source", "")
	}
	return postgres.NewSource(conn, version/10000), nil
}

// running finds the compute that runs on a branch's own volume.
func (s *Service) running(ctx context.Context, branchID string) (computeID string, ok bool, err error) {
	if _, up := s.Computes.Lookup(branchID); up {
		return branchID, true, nil
	}
	endpoints, err := s.Store.BranchEndpoints(ctx, branchID)
	if err != nil {
		return "", false, err
	}
	for _, e := range endpoints {
		if _, up := s.Computes.Lookup(e.ID); up && e.Type == core.EndpointReadWrite {
			return e.ID, true, nil
		}
	}
	return "", false, nil
}

// spec is what a compute of a branch should be; e may be empty, when the branch has no endpoint.
func (s *Service) spec(ctx context.Context, b core.Branch, computeID string, e core.Endpoint) (compute.Spec, error) {
	// A project that is being deleted is not found, and its computes are never started.
	project, err := s.Store.Project(ctx, b.ProjectID)
	if err != nil {
		return compute.Spec{}, gone(err)
	}
	build, err := s.build(project.PGVersion)
	if err != nil {
		return compute.Spec{}, &core.Error{Kind: core.KindUnprocessable, Message: core.UserMessage(err), Err: err}
	}
	if err := s.checkData(b); err != nil {
		return compute.Spec{}, err
	}
	preload := preloadOf(project.Settings).list(build)
	database, err := s.libraryDatabase(ctx, b.ID, preload)
	if err != nil {
		return compute.Spec{}, err
	}
	if build, err = s.Overlays.Build(ctx, build); err != nil {
		return compute.Spec{}, err
	}
	spec := compute.Spec{
		EndpointID: computeID, Build: build, DataDir: s.Volumes.Path(b.VolumeID), WALDir: s.WAL.Path(b.ID, b.Incarnation),
		Size: postgres.SizeSpec{MinCU: defaultCU, MaxCU: defaultCU}, Promote: b.Promote, IdleTimeout: -1,
		Preload: preload, Database: database,
		LogicalReplication: logicalReplication(project.Settings),
	}
	if e.ID != "" {
		spec.Size = sizeSpec(e)
		spec.PGSettings = e.PGSettings
		spec.IdleTimeout = idleTimeout(e)
	}
	return spec, nil
}

func (s *Service) persist(branchID, computeID string) func(context.Context, compute.Handle) error {
	return func(ctx context.Context, h compute.Handle) error {
		raw, err := json.Marshal(h)
		if err != nil {
			return core.Wrap(err, "control.persist", "")
		}
		return s.Store.Tx(ctx, func(q store.Q) error {
			// A handle is of use only as long as this machine stays up.
			if err := q.CommitLater(ctx); err != nil {
				return err
			}
			return q.SaveHandle(ctx, computeID, branchID, raw)
		})
	}
}

// up starts a compute and, on a branch's first start, applies what waits for it. The commit records that.
func (s *Service) up(ctx context.Context, b core.Branch, spec compute.Spec) (compute.Ready, ops.Commit, error) {
	ready, err := s.Computes.Start(ctx, spec, s.persist(b.ID, spec.EndpointID))
	if err != nil {
		return ready, nil, err
	}
	if len(b.Setup) == 0 {
		s.readiness.tell(spec.EndpointID)
		if !b.Promote {
			return ready, nil, nil
		}
	}
	conn, err := s.Computes.Conn(ctx, spec.EndpointID, postgres.AdminDatabase)
	if err != nil {
		return ready, nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if len(b.Setup) > 0 {
		if err := s.applySetup(ctx, conn, b); err != nil {
			return ready, nil, err
		}
		s.readiness.tell(spec.EndpointID)
	}
	catalog, err := postgres.ReadCatalog(ctx, conn)
	if err != nil {
		return ready, nil, err
	}
	size, err := postgres.LogicalSize(ctx, conn)
	if err != nil {
		return ready, nil, err
	}
	return ready, func(ctx context.Context, q store.Q) error {
		if _, err := q.LockBranchByID(ctx, b.ID); err != nil {
			return err
		}
		if _, err := storeCatalog(ctx, q, b.ID, catalog, ""); err != nil {
			return err
		}
		return q.BranchStarted(ctx, b.ID, size)
	}, nil
}

// applySetup turns the template's role and database into the project's.
func (s *Service) applySetup(ctx context.Context, conn *pgx.Conn, b core.Branch) error {
	var want setup
	if err := json.Unmarshal(b.Setup, &want); err != nil {
		return core.Wrap(err, "control.setup", "")
	}
	role, err := s.Store.Role(ctx, b.ID, want.Role)
	if err != nil {
		return err
	}
	if want.Role != postgres.DefaultOwner {
		if err := postgres.RenameRole(ctx, conn, postgres.DefaultOwner, want.Role); err != nil {
			return err
		}
	}
	if want.Database != postgres.DefaultDatabase {
		if err := postgres.RenameDatabase(ctx, conn, postgres.DefaultDatabase, want.Database); err != nil {
			return err
		}
	}
	return postgres.SetRoleVerifier(ctx, conn, want.Role, role.Verifier)
}

func (s *Service) startCompute(ctx context.Context, b core.Branch, op core.Operation) (ops.Commit, error) {
	e, err := s.Store.AnyEndpoint(ctx, op.EndpointID)
	if core.IsKind(err, core.KindNotFound) || (err == nil && (e.Deleting || b.Deleting)) {
		return nil, nil // deleted meanwhile: nothing to start
	}
	if err != nil {
		return nil, err
	}
	idle := func(ctx context.Context, q store.Q) error { return q.EndpointIdle(ctx, e.ID) }
	if e.Disabled {
		return idle, nil
	}
	if err := s.full.check(); err != nil {
		return nil, err
	}
	spec, err := s.spec(ctx, b, e.ID, e)
	if err != nil {
		return nil, err
	}
	// What interrupted work left running on the volume makes room.
	if err := s.Computes.Stop(ctx, b.ID, compute.StopFast); err != nil {
		return nil, err
	}
	ready, first, err := s.up(ctx, b, spec)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, q store.Q) error {
		if first != nil {
			if err := first(ctx, q); err != nil {
				return err
			}
		} else if err := q.CommitLater(ctx); err != nil {
			return err
		}
		return errors.Join(q.EndpointActive(ctx, e.ID, ready.StartedAt), q.TouchProject(ctx, b.ProjectID, ready.StartedAt))
	}, nil
}

// down stops a compute; what its catalogs say is committed with the operation's end.
func (s *Service) down(ctx context.Context, b core.Branch, computeID string) (ops.Commit, error) {
	var catalog *postgres.Catalog
	var size int64
	last, err := s.Store.LastOperation(ctx, b.ID)
	if err != nil {
		return nil, err
	}
	if conn, err := s.Computes.Conn(ctx, computeID, postgres.AdminDatabase); err == nil {
		c, err := postgres.ReadCatalog(ctx, conn)
		if err == nil {
			size, err = postgres.LogicalSize(ctx, conn)
		}
		if err == nil {
			catalog = &c
		}
		if err := postgres.EndReplication(ctx, conn); err != nil {
			s.log.Warn("cannot end the replication sessions of a compute that stops", "endpoint_id", computeID, "error", err)
		}
		_ = conn.Close(context.WithoutCancel(ctx))
	}
	s.catalogs.forget(ctx, computeID)
	if err := s.Computes.Stop(ctx, computeID, compute.StopFast); err != nil {
		return nil, err
	}
	s.trim(ctx, ref(b))
	return func(ctx context.Context, q store.Q) error {
		if err := q.DeleteHandle(ctx, computeID); err != nil || catalog == nil {
			return err
		}
		if _, err := q.LockBranchByID(ctx, b.ID); err != nil {
			return err
		}
		if now, err := q.LastOperation(ctx, b.ID); err != nil || now != last {
			return err // changes are queued behind this operation: they end with a look of their own
		}
		if _, err := storeCatalog(ctx, q, b.ID, *catalog, ""); err != nil {
			return err
		}
		return q.SetBranchSize(ctx, b.ID, size)
	}, nil
}

// trim gives back the disk that a sleeping branch's WAL does not need. After a crash all of it is needed.
func (s *Service) trim(ctx context.Context, r history.Ref) {
	info, err := readControl(s.Volumes.Path(r.Volume))
	if err == nil && info.Clean {
		// What a slot needs is kept like what recovery needs; if that is not known, so is everything.
		info.Slots, err = postgres.OldestSlot(s.Volumes.Path(r.Volume))
	}
	if err == nil && info.Clean {
		err = history.Trim(ctx, s.WAL.Path(r.Branch, r.Incarnation), info)
	}
	if err != nil {
		s.log.Warn("cannot trim the WAL of a sleeping branch", "branch_id", r.Branch, "error", err)
	}
}

func (s *Service) suspendCompute(ctx context.Context, b core.Branch, op core.Operation) (ops.Commit, error) {
	if string(op.Params) == string(because(reasonIdle)) && s.usedAgain(ctx, op.EndpointID) {
		return func(ctx context.Context, q store.Q) error {
			_, err := q.SetEndpointPending(ctx, op.EndpointID, "")
			return err
		}, nil
	}
	commit, err := s.down(ctx, b, op.EndpointID)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, q store.Q) error {
		if err := commit(ctx, q); err != nil {
			return err
		}
		e, err := q.AnyEndpoint(ctx, op.EndpointID)
		switch {
		case core.IsKind(err, core.KindNotFound):
			return nil
		case err != nil:
			return err
		case e.Deleting && !b.Deleting:
			if err := os.RemoveAll(filepath.Join(s.RunDir, e.ID)); err != nil {
				return core.Wrap(err, "control.suspend", "")
			}
			return q.DeleteEndpoint(ctx, e.ID)
		}
		restarts := e.PendingState == core.EndpointActive // a start is queued behind
		if err := q.EndpointIdle(ctx, e.ID); err != nil || !restarts {
			return err
		}
		_, err = q.SetEndpointPending(ctx, e.ID, core.EndpointActive)
		return err
	}, nil
}

// usedAgain tells whether somebody came between the decision to suspend an idle compute and the act.
func (s *Service) usedAgain(ctx context.Context, endpointID string) bool {
	e, err := s.Store.AnyEndpoint(ctx, endpointID)
	if err != nil || e.Deleting {
		return false
	}
	conn, err := s.Computes.Conn(ctx, endpointID, postgres.AdminDatabase)
	if err != nil {
		return false
	}
	defer conn.Close(context.WithoutCancel(ctx))
	a, err := postgres.ReadActivity(ctx, conn)
	limit, sleeps := e.IdleTimeout()
	return err == nil && (!sleeps || a.Active || time.Since(a.LastActive) < limit)
}
