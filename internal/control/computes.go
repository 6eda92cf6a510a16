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

// origin is a running compute as the origin of a copy; it implements history.Source. Only a backup needs a session of its
// own.
type origin struct {
	s      *Service
	id     string
	backup *postgres.Source
}

func (o *origin) FlushLSN(ctx context.Context) (lsn core.LSN, timeline uint32, err error) {
	if o.backup != nil {
		return o.backup.FlushLSN(ctx)
	}
	err = o.s.Computes.Do(ctx, o.id, func(conn *pgx.Conn) (err error) {
		lsn, timeline, err = postgres.NewSource(conn, 0).FlushLSN(ctx)
		return err
	})
	return lsn, timeline, err
}

func (o *origin) StartBackup(ctx context.Context, label string) (core.LSN, error) {
	// Its checkpoint drops WAL that nothing holds, and a branch that has just started has no slot yet.
	if err := o.s.archiveRunning(ctx, o.id); err != nil {
		return 0, err
	}
	conn, err := o.s.Computes.Conn(ctx, o.id, postgres.AdminDatabase)
	if err != nil {
		return 0, err
	}
	var version int
	if err := conn.QueryRow(ctx, "SELECT current_setting('server_version_num')::int").Scan(&version); err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		return 0, core.Wrap(err, "control.origin", "")
	}
	o.backup = postgres.NewSource(conn, version/10000)
	return o.backup.StartBackup(ctx, label)
}

func (o *origin) StopBackup(ctx context.Context) (label, tablespaceMap []byte, err error) {
	return o.backup.StopBackup(ctx)
}

// NeverSubscribed is postgres.Source's.
func (o *origin) NeverSubscribed(ctx context.Context) (never bool, err error) {
	err = o.s.Computes.Do(ctx, o.id, func(conn *pgx.Conn) (err error) {
		never, err = postgres.NewSource(conn, 0).NeverSubscribed(ctx)
		return err
	})
	return never, err
}

func (o *origin) close(ctx context.Context) {
	if o.backup != nil {
		o.backup.Close(ctx)
	}
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
	plain, err := s.build(ctx, project.PGVersion)
	build := plain
	if err == nil {
		build, err = s.Overlays.Build(ctx, plain)
	}
	if ctx.Err() != nil {
		return compute.Spec{}, ctx.Err()
	}
	if err != nil { // it was removed: what runs of it is taken over, nothing is started
		plain = postgres.Build{Major: project.PGVersion}
		build = plain
	}
	if err := s.checkData(b); err != nil {
		return compute.Spec{}, err
	}
	preload := preloadFor(project.Settings, e.Preload).list(plain)
	database, err := s.libraryDatabase(ctx, b.ID, preload)
	if err != nil {
		return compute.Spec{}, err
	}
	spec := compute.Spec{
		EndpointID: computeID, Build: build, DataDir: s.Volumes.Path(b.VolumeID), WALDir: s.WAL.Path(b.ID, b.Incarnation),
		Size: postgres.SizeSpec{MinCU: defaultCU, MaxCU: defaultCU}, Promote: b.Promote, IdleTimeout: -1,
		Preload: preload, Database: database, AuditLevel: auditLevel(project.Settings),
		LogicalReplication: logicalReplication(project.Settings),
	}
	if e.ID != "" {
		spec.Size = sizeSpec(e)
		spec.PGSettings = e.PGSettings
		spec.IdleTimeout = idleTimeout(e)
	}
	if isReplica(e) {
		return s.replicaSpec(ctx, b, e, spec)
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

// up starts a compute on a branch's own volume and, on the branch's first start, applies what waits for it. The commit
// records that.
func (s *Service) up(ctx context.Context, b core.Branch, spec compute.Spec) (compute.Ready, ops.Commit, error) {
	if spec.Build.BinDir == "" {
		_, err := s.installed(ctx, spec.Build.Major)
		if err == nil { // since the spec was made
			err = core.Errorf(core.KindUnavailable, "", "PostgreSQL %d has just been installed; try again", spec.Build.Major)
		}
		return compute.Ready{}, nil, err
	}
	if err := audited(spec); err != nil {
		return compute.Ready{}, nil, err
	}
	ready, err := s.Computes.Start(ctx, spec, s.persist(b.ID, spec.EndpointID))
	if err != nil {
		return ready, nil, err
	}
	if len(b.Setup) == 0 {
		s.readiness.tell(spec.EndpointID)
		s.primaryChanged(ctx, b)
		if !b.Promote {
			return ready, nil, nil
		}
	}
	if len(b.Setup) > 0 {
		conn, err := s.Computes.Conn(ctx, spec.EndpointID, postgres.AdminDatabase)
		if err != nil {
			return ready, nil, err
		}
		defer conn.Close(context.WithoutCancel(ctx))
		if err := s.applySetup(ctx, conn, b); err != nil {
			return ready, nil, err
		}
		s.readiness.tell(spec.EndpointID)
	}
	catalog, size, err := s.look(ctx, spec.EndpointID, b.LogicalSize)
	if err != nil {
		return ready, nil, err
	}
	begin, beginAt := core.LSN(0), time.Now()
	if len(b.Setup) > 0 { // moments before are of the template
		if begin, _, err = (&origin{s: s, id: spec.EndpointID}).FlushLSN(ctx); err != nil {
			return ready, nil, err
		}
		beginAt = time.Now()
	}
	return ready, func(ctx context.Context, q store.Q) error {
		if _, err := q.LockBranchByID(ctx, b.ID); err != nil {
			return err
		}
		if begin != 0 {
			if err := q.BeginIncarnation(ctx, b.ID, b.Incarnation, begin, beginAt); err != nil {
				return err
			}
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

// look reads a running compute's roles, databases and logical size in bytes; a size that is known is not read again.
func (s *Service) look(ctx context.Context, computeID string, known *int64) (c postgres.Catalog, size int64, err error) {
	err = s.Computes.Do(ctx, computeID, func(conn *pgx.Conn) (err error) {
		if c, err = postgres.ReadCatalog(ctx, conn); err != nil {
			return err
		}
		if known != nil {
			size = *known
			return nil
		}
		size, err = postgres.LogicalSize(ctx, conn)
		return err
	})
	return c, size, err
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
	if err := errors.Join(s.full.check(), s.withinQuota(ctx, s.Store.Q, b.ProjectID, b.ID)); err != nil {
		return nil, err
	}
	var ready compute.Ready
	var first ops.Commit
	background := string(op.Params) != "{}" && !s.readiness.awaited(e.ID) // restarts say why; nobody asked for them
	if isReplica(e) {
		ready, err = s.startReplica(ctx, b, e, background)
	} else {
		ready, first, err = s.startPrimary(ctx, b, e, background)
	}
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

// startPrimary starts the compute of a branch's read_write endpoint.
func (s *Service) startPrimary(ctx context.Context, b core.Branch, e core.Endpoint, background bool) (compute.Ready, ops.Commit, error) {
	spec, err := s.spec(ctx, b, e.ID, e)
	if err != nil {
		return compute.Ready{}, nil, err
	}
	spec.Background = background
	// What interrupted work left running on the volume makes room.
	if err := s.Computes.Stop(ctx, b.ID, compute.StopFast); err != nil {
		return compute.Ready{}, nil, err
	}
	return s.up(ctx, b, spec)
}

// down stops a compute that runs on a branch's own volume; what its catalogs say is committed with the operation's end.
func (s *Service) down(ctx context.Context, b core.Branch, computeID string) (ops.Commit, error) {
	return s.downUnless(ctx, b, computeID, func() bool { return false })
}

// errInUse ends a suspension that came too late.
var errInUse = errors.New("the compute is in use again")

// downUnless is down, unless used, which is asked at the last moment, says that somebody came: then it is errInUse.
func (s *Service) downUnless(ctx context.Context, b core.Branch, computeID string, used func() bool) (ops.Commit, error) {
	var catalog *postgres.Catalog
	var size int64
	last, err := s.Store.LastOperation(ctx, b.ID)
	if err != nil {
		return nil, err
	}
	if c, n, err := s.look(ctx, computeID, nil); err == nil {
		catalog, size = &c, n
	}
	if used() {
		return nil, errInUse
	}
	if _, up := s.Computes.Lookup(computeID); up {
		if err := s.Computes.Do(ctx, computeID, func(conn *pgx.Conn) error { return postgres.EndReplication(ctx, conn) }); err != nil {
			s.log.Warn("cannot end the replication sessions of a compute that stops", "endpoint_id", computeID, "error", err)
		}
	}
	if err := s.Computes.Stop(ctx, computeID, compute.StopFast); err != nil {
		return nil, err
	}
	s.primaryChanged(ctx, b) // before its WAL is trimmed
	s.trim(ctx, ref(b))
	s.meterStopped(ctx, b)
	s.history.want(b.ID, true)
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
		if info.History, err = s.archiveRest(ctx, r); err != nil && ctx.Err() == nil {
			s.log.Warn("cannot archive the WAL of a sleeping branch; all of it is kept", "branch_id", r.Branch, "error", err)
			return
		}
	}
	if err == nil && info.Clean {
		err = history.Trim(ctx, s.WAL.Path(r.Branch, r.Incarnation), info)
	}
	if err != nil {
		s.log.Warn("cannot trim the WAL of a sleeping branch", "branch_id", r.Branch, "error", err)
	}
}

func (s *Service) suspendCompute(ctx context.Context, b core.Branch, op core.Operation) (ops.Commit, error) {
	used := func() bool {
		return string(op.Params) == string(because(reasonIdle)) && s.usedAgain(ctx, op.EndpointID)
	}
	e, err := s.Store.AnyEndpoint(ctx, op.EndpointID)
	if err != nil && !core.IsKind(err, core.KindNotFound) {
		return nil, err
	}
	commit := func(ctx context.Context, q store.Q) error { return q.DeleteHandle(ctx, op.EndpointID) }
	switch {
	case !isReplica(e):
		commit, err = s.downUnless(ctx, b, op.EndpointID, used)
	case used():
		err = errInUse
	default:
		err = s.downReplica(ctx, b, e.ID)
	}
	if errors.Is(err, errInUse) {
		return func(ctx context.Context, q store.Q) error {
			_, err := q.SetEndpointPending(ctx, op.EndpointID, "")
			return err
		}, nil
	}
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
	var a postgres.Activity
	err = s.Computes.Do(ctx, endpointID, func(conn *pgx.Conn) (err error) {
		a, err = postgres.ReadActivity(ctx, conn)
		return err
	})
	limit, sleeps := e.IdleTimeout()
	return err == nil && (!sleeps || a.Active || time.Since(a.LastActive) < limit)
}
