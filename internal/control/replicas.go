package control

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/history"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/store"
)

// A replica is a read_only endpoint: a hot standby on a clone of its branch's volume, made anew at every start and removed
// at every stop, so that one that sleeps costs nothing. It streams from whatever runs on the branch's own volume. While
// nothing does, it has been given what the branch's WAL holds.

const (
	// maxReplicas is how many a branch can have: each takes a walsender and a slot of its primary.
	maxReplicas = 8
	// A replica that gets no WAL for so long although there is some is made anew, and not again before a minute.
	replicaPatience = 10 * time.Second
	recloneEvery    = time.Minute
	// lagLook is how long a look waits to see a change replayed, to measure how long that takes.
	lagLook = 100 * time.Millisecond
	// tendTimeout bounds a look: a replica that does not answer must not hold up its primary.
	tendTimeout = 2 * time.Second
)

// ReplicaLag is how far a running replica is behind its primary.
type ReplicaLag struct {
	Bytes int64         // of WAL that is durable on the primary and not replayed
	Delay time.Duration // age of the oldest change that is not replayed; 0 when there is none
}

// replicas is what is known of running replicas.
type replicas struct {
	locks keyedLocks // by endpoint
	mu    sync.Mutex
	known map[string]*replicaState
}

type replicaState struct {
	lag      ReplicaLag
	caughtUp time.Time // last seen without a lag
	broken   time.Time // since when it does not get what there is; zero while it does
	replayed core.LSN
	recloned time.Time
}

// state returns what is known of a replica, to be used under its lock.
func (r *replicas) state(id string) *replicaState {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known == nil {
		r.known = map[string]*replicaState{}
	}
	st := r.known[id]
	if st == nil {
		st = &replicaState{caughtUp: time.Now()}
		r.known[id] = st
	}
	return st
}

func (r *replicas) setLag(st *replicaState, lag ReplicaLag) {
	r.mu.Lock()
	defer r.mu.Unlock()
	st.lag = lag
}

// stopped forgets how a replica was doing.
func (r *replicas) stopped(id string, deleted bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if st := r.known[id]; st != nil {
		r.known[id] = &replicaState{caughtUp: time.Now(), recloned: st.recloned}
	}
	if deleted {
		delete(r.known, id)
	}
}

// ReplicaLags returns the last seen lag of every running replica by endpoint id.
func (s *Service) ReplicaLags() map[string]ReplicaLag {
	out := map[string]ReplicaLag{}
	for _, id := range s.Computes.Running() {
		if spec, ok := s.Computes.Spec(id); ok && spec.Standby != nil {
			s.replicas.mu.Lock()
			if st := s.replicas.known[id]; st != nil {
				out[id] = st.lag
			}
			s.replicas.mu.Unlock()
		}
	}
	return out
}

// replicaRef names a replica's volume and WAL directory. The latter carries the incarnation that it was copied from.
func replicaRef(b core.Branch, endpointID string) history.Ref {
	return history.Ref{Volume: endpointID, Branch: endpointID, Incarnation: b.Incarnation}
}

// isReplica tells endpoints that own a volume while they run.
func isReplica(e core.Endpoint) bool { return e.Type == core.EndpointReadOnly }

// removeReplica removes a stopped replica's files.
func (s *Service) removeReplica(ctx context.Context, endpointID string) error {
	return errors.Join(s.WAL.Delete(ctx, endpointID), s.Volumes.Delete(ctx, endpointID))
}

// replicaSpec is what a replica's compute should be. Its primary is pointed out once it runs; see tend.
func (s *Service) replicaSpec(ctx context.Context, b core.Branch, e core.Endpoint, spec compute.Spec) (compute.Spec, error) {
	r := replicaRef(b, e.ID)
	spec.DataDir, spec.WALDir, spec.Promote = s.Volumes.Path(r.Volume), s.WAL.Path(r.Branch, r.Incarnation), false
	limits, err := s.primaryLimits(ctx, b)
	if err != nil {
		return spec, err
	}
	// What is replayed first may have been written by a primary of another size.
	if c, err := postgres.ReadControl(spec.DataDir); err == nil {
		limits = limits.Max(c.Limits)
	}
	spec.Standby = &compute.Standby{Standby: postgres.Standby{Name: e.ID, AtLeast: limits}}
	return spec, nil
}

// primaryLimits are those of the compute that runs, or would run, on a branch's own volume.
func (s *Service) primaryLimits(ctx context.Context, b core.Branch) (postgres.StandbyLimits, error) {
	endpoints, err := s.Store.BranchEndpoints(ctx, b.ID)
	if err != nil {
		return postgres.StandbyLimits{}, err
	}
	spec, err := s.spec(ctx, b, b.ID, readWrite(endpoints))
	if err != nil {
		return postgres.StandbyLimits{}, err
	}
	return postgres.LimitsOf(s.Computes.Settings(spec)), nil
}

// startReplica makes a replica's volume and starts its compute. It never starts its primary, except that a branch which has
// never run is made ready once.
func (s *Service) startReplica(ctx context.Context, b core.Branch, e core.Endpoint, background bool) (compute.Ready, error) {
	if r, up := s.Computes.Lookup(e.ID); up {
		return r, nil
	}
	if err := s.checkData(b); err != nil {
		return compute.Ready{}, err
	}
	unlock, err := s.locks.lock(ctx, e.ID) // its files are not an orphan's
	if err != nil {
		return compute.Ready{}, err
	}
	defer unlock()
	// One that starts or stops right now ends before its files go.
	if err := s.Computes.Stop(ctx, e.ID, compute.StopFast); err != nil {
		return compute.Ready{}, err
	}
	primaryID, up, err := s.running(ctx, b.ID)
	if err != nil {
		return compute.Ready{}, err
	}
	if !up && (b.Promote || len(b.Setup) > 0) {
		if b, err = s.firstStart(ctx, b); err != nil {
			return compute.Ready{}, err
		}
	}
	var src history.Source
	slot := ""
	if up {
		primary := &origin{s: s, id: primaryID}
		defer primary.close(ctx)
		src = primary
		// Before the copy: from here on the primary keeps what the replica will ask for.
		err = s.Computes.Do(ctx, primaryID, func(conn *pgx.Conn) error {
			if err := postgres.SettleTimeline(ctx, conn); err != nil {
				return err
			}
			slot = s.ensureSlot(ctx, conn, e.ID)
			return nil
		})
		if err != nil {
			return compute.Ready{}, err
		}
	}
	res, err := s.fork(ctx, ref(b), replicaRef(b, e.ID), src)
	if err != nil {
		return compute.Ready{}, err
	}
	spec, err := s.spec(ctx, b, e.ID, e)
	if err == nil {
		err = audited(spec)
	}
	if err == nil {
		spec.Background, spec.Standby.ReplayTo = background, res.LSN
		if p, up := s.Computes.Lookup(primaryID); up && primaryID != "" {
			spec.Standby.Primary, spec.Standby.Slot = p.SocketDir, slot
		}
		var ready compute.Ready
		if ready, err = s.Computes.Start(ctx, spec, s.persist(b.ID, e.ID)); err == nil {
			s.replicas.stopped(e.ID, false)
			s.readiness.tell(e.ID)
			return ready, nil
		}
	}
	if rmErr := s.removeReplica(context.WithoutCancel(ctx), e.ID); rmErr != nil {
		s.log.Warn("cannot remove the files of a replica that did not start", "endpoint_id", e.ID, "error", rmErr)
	}
	return compute.Ready{}, err
}

// ensureSlot returns the replica's slot on its primary, "" when there can be none: then it is made anew should it miss WAL.
func (s *Service) ensureSlot(ctx context.Context, conn *pgx.Conn, endpointID string) string {
	slot := postgres.SlotName(endpointID)
	if _, err := postgres.EnsureSlot(ctx, conn, slot); err != nil {
		s.log.Warn("a replica has no slot on its primary", "endpoint_id", endpointID, "error", err)
		return ""
	}
	return slot
}

// firstStart ends the first recovery of a branch that nobody has connected to, so that it is on its own timeline.
func (s *Service) firstStart(ctx context.Context, b core.Branch) (core.Branch, error) {
	endpoints, err := s.Store.BranchEndpoints(ctx, b.ID)
	if err != nil {
		return b, err
	}
	spec, err := s.spec(ctx, b, b.ID, readWrite(endpoints))
	if err != nil {
		return b, err
	}
	spec.IdleTimeout = -1
	_, first, err := s.up(ctx, b, spec)
	if err != nil {
		return b, err
	}
	last, err := s.down(ctx, b, b.ID)
	if err != nil {
		return b, err
	}
	err = s.Store.Tx(ctx, func(q store.Q) error { return errors.Join(first(ctx, q), last(ctx, q)) })
	if err != nil {
		return b, err
	}
	return s.Store.BranchByID(ctx, b.ID)
}

// downReplica stops a replica and removes its files: everything is in its branch.
func (s *Service) downReplica(ctx context.Context, b core.Branch, endpointID string) error {
	if err := s.Computes.Stop(ctx, endpointID, compute.StopFast); err != nil {
		return err
	}
	s.replicas.stopped(endpointID, false)
	if err := s.dropSlots(ctx, b, func(slot string) bool { return slot == postgres.SlotName(endpointID) }); err != nil {
		s.log.Warn("cannot drop the slot of a replica", "endpoint_id", endpointID, "error", err)
	}
	return s.removeReplica(ctx, endpointID)
}

// dropSlots drops the platform's slots that are not used any more. The caller holds the branch's lock.
func (s *Service) dropSlots(ctx context.Context, b core.Branch, which func(slot string) bool) error {
	dir := s.Volumes.Path(b.VolumeID)
	slots, err := postgres.SlotsOnDisk(dir)
	if err != nil {
		return err
	}
	id, up, err := s.running(ctx, b.ID)
	if err != nil {
		return err
	}
	for _, slot := range slots {
		switch {
		case !which(slot):
		case up:
			err = errors.Join(err, s.Computes.Do(ctx, id, func(conn *pgx.Conn) error {
				return postgres.DropSlot(ctx, conn, slot)
			}))
		default:
			err = errors.Join(err, postgres.RemoveSlot(dir, slot))
		}
	}
	return err
}

// runningReplicas lists the replicas of a branch whose computes run.
func (s *Service) runningReplicas(ctx context.Context, branchID string) ([]string, error) {
	endpoints, err := s.Store.BranchEndpoints(ctx, branchID)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range endpoints {
		if _, up := s.Computes.Lookup(e.ID); up && isReplica(e) {
			ids = append(ids, e.ID)
		}
	}
	return ids, nil
}

// primaryChanged lets the replicas of a branch follow its primary, which was started or stopped. The caller holds the
// branch's lock. What fails here is repaired by the next look at the replica.
func (s *Service) primaryChanged(ctx context.Context, b core.Branch) {
	ids, err := s.runningReplicas(ctx, b.ID)
	if err != nil {
		s.log.Warn("cannot tell replicas of their primary", "branch_id", b.ID, "error", err)
		return
	}
	used := map[string]bool{}
	for _, id := range ids {
		used[postgres.SlotName(id)] = true
		if err := s.tend(ctx, b, id, true); err != nil {
			s.log.Warn("cannot tell a replica of its primary", "endpoint_id", id, "error", err)
		}
	}
	if err := s.dropSlots(ctx, b, func(slot string) bool { return !used[slot] }); err != nil {
		s.log.Warn("cannot drop the slots of replicas that do not run", "branch_id", b.ID, "error", err)
	}
}

// tendReplica looks at a replica between operations.
func (s *Service) tendReplica(ctx context.Context, e core.Endpoint) error {
	b, err := s.Store.BranchByID(ctx, e.BranchID)
	if err != nil {
		return err
	}
	return s.tend(ctx, b, e.ID, false)
}

// tend makes a running replica follow what runs, or does not run, on its branch's volume, and has it made anew when that
// cannot work. With locked, the caller holds the branch's lock.
func (s *Service) tend(ctx context.Context, b core.Branch, id string, locked bool) error {
	ctx, cancel := context.WithTimeout(ctx, tendTimeout)
	defer cancel()
	unlock, err := s.replicas.locks.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	spec, ok := s.Computes.Spec(id)
	if !ok || spec.Standby == nil {
		return nil
	}
	st := s.replicas.state(id)
	want, err := filepath.Abs(s.WAL.Path(id, b.Incarnation))
	if err != nil {
		return core.Wrap(err, "control.tend", "")
	}
	if at, err := os.Readlink(filepath.Join(spec.DataDir, "pg_wal")); err == nil && at != want {
		return s.reclone(ctx, st, id, "the branch was restored")
	}
	primaryID, up, err := s.running(ctx, b.ID)
	if err != nil {
		return err
	}
	if up {
		return s.follow(ctx, b, st, id, primaryID, *spec.Standby)
	}
	return s.feed(ctx, b, st, id, *spec.Standby, locked)
}

// follow keeps a replica streaming from its running primary.
func (s *Service) follow(ctx context.Context, b core.Branch, st *replicaState, id, primaryID string, standby compute.Standby) error {
	p, up := s.Computes.Lookup(primaryID)
	if !up {
		return nil // the next look
	}
	var end core.LSN
	lost, found := false, standby
	err := s.Computes.Do(ctx, primaryID, func(conn *pgx.Conn) (err error) {
		if found.Slot != "" || found.Primary != p.SocketDir {
			found.Slot, found.Primary = postgres.SlotName(id), p.SocketDir
			if lost, err = postgres.EnsureSlot(ctx, conn, found.Slot); err != nil {
				s.log.Warn("a replica has no slot on its primary", "endpoint_id", id, "error", err)
				found.Slot = ""
			}
		}
		end, err = postgres.Flushed(ctx, conn)
		return err
	})
	if err == nil && found != standby {
		st.broken = time.Time{}
		err = s.Computes.Do(ctx, id, func(conn *pgx.Conn) error { return s.Computes.Follow(ctx, conn, id, found) })
	}
	if err != nil {
		return err
	}
	now, err := s.measure(ctx, st, id, end)
	if err != nil {
		return err
	}
	limits, err := s.primaryLimits(ctx, b)
	switch {
	case err != nil:
		return err
	case !now.Limits.Covers(limits):
		return s.reclone(ctx, nil, id, "its primary has become larger")
	case lost:
		return s.reclone(ctx, st, id, "its primary did not keep the WAL that it needs")
	}
	stuck := now.Waiting && now.Replayed < end && now.Replayed == st.replayed
	if st.replayed = now.Replayed; st.lasts(!now.Streaming || stuck) {
		return s.reclone(ctx, st, id, "it cannot stream from its primary")
	}
	return nil
}

// lasts tells whether a replica has not been getting what there is for longer than it may.
func (st *replicaState) lasts(broken bool) bool {
	switch {
	case !broken:
		st.broken = time.Time{}
	case st.broken.IsZero():
		st.broken = time.Now()
	default:
		return time.Since(st.broken) > replicaPatience
	}
	return false
}

// feed gives a replica what the sleeping primary's WAL has and it could not stream.
func (s *Service) feed(ctx context.Context, b core.Branch, st *replicaState, id string, standby compute.Standby, locked bool) error {
	control, err := readControl(s.Volumes.Path(b.VolumeID))
	if err != nil {
		return err
	}
	end := control.Checkpoint
	now, err := s.measure(ctx, st, id, end+1)
	if err != nil {
		return err
	}
	fed := false
	if now.Received <= end && locked {
		// Under the lock nobody starts the primary meanwhile.
		if end, err = s.WAL.Feed(ctx, ref(b), replicaRef(b, id), control, now.Received); err != nil {
			return err
		}
		fed = true
	}
	if standby.Primary != "" || fed {
		standby.Primary, standby.Slot = "", ""
		if err := s.Computes.Do(ctx, id, func(conn *pgx.Conn) error { return s.Computes.Follow(ctx, conn, id, standby) }); err != nil {
			return err
		}
	}
	if fed {
		if now, err = s.measure(ctx, st, id, end); err != nil {
			return err
		}
	}
	stuck := now.Waiting && now.Replayed <= control.Checkpoint && now.Replayed == st.replayed
	if st.replayed = now.Replayed; st.lasts(stuck) {
		return s.reclone(ctx, st, id, "the branch's WAL does not reach back to where it is")
	}
	return nil
}

// measure sees how far a replica is from end, and how long it takes to get there.
func (s *Service) measure(ctx context.Context, st *replicaState, id string, end core.LSN) (now postgres.StandbyState, err error) {
	began := time.Now()
	err = s.Computes.Do(ctx, id, func(conn *pgx.Conn) error {
		now, err = postgres.ReadStandby(ctx, conn)
		if err != nil {
			return err
		}
		behind := int64(end) - int64(now.Replayed)
		if behind <= 0 {
			st.caughtUp = began
			s.replicas.setLag(st, ReplicaLag{})
			return nil
		}
		for at := now.Replayed; at < end; {
			if time.Since(began) > lagLook {
				delay := time.Since(st.caughtUp)
				if !now.LastCommit.IsZero() {
					delay = min(delay, time.Since(now.LastCommit))
				}
				s.replicas.setLag(st, ReplicaLag{Bytes: behind, Delay: max(delay, lagLook)})
				return nil
			}
			if err := pause(ctx, 2*time.Millisecond); err != nil {
				return err
			}
			if at, err = postgres.Replayed(ctx, conn); err != nil {
				return err
			}
		}
		st.caughtUp = began
		s.replicas.setLag(st, ReplicaLag{Bytes: behind, Delay: time.Since(began)})
		return nil
	})
	return now, err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// reclone has a running replica made anew by a restart, at most once a minute for what st remembers.
func (s *Service) reclone(ctx context.Context, st *replicaState, id, reason string) error {
	if st != nil {
		if time.Since(st.recloned) < recloneEvery {
			return nil
		}
		st.recloned, st.broken = time.Now(), time.Time{}
	}
	queued, err := s.restartFor(ctx, id, "the replica is made anew: "+reason)
	if queued {
		s.log.Warn("a replica is made anew", "endpoint_id", id, "reason", reason)
	}
	return err
}

// lag looks at a running replica now.
func (s *Service) lag(ctx context.Context, e core.Endpoint) (ReplicaLag, bool) {
	if _, up := s.Computes.Lookup(e.ID); !up || s.tendReplica(ctx, e) != nil {
		return ReplicaLag{}, false
	}
	l, ok := s.ReplicaLags()[e.ID]
	return l, ok
}

// checkReplicas refuses more replicas on a branch than its primary can feed.
func checkReplicas(branchID string, endpoints []core.Endpoint) error {
	n := 0
	for _, e := range endpoints {
		if isReplica(e) {
			n++
		}
	}
	if n > maxReplicas {
		return core.Errorf(core.KindUnprocessable, "ENDPOINTS_LIMIT_EXCEEDED",
			"branch %s can have %d read_only endpoints at most; delete one first", branchID, maxReplicas)
	}
	return nil
}
