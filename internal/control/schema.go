package control

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/diff"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/ops"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/store"
)

// maxDumps bounds how many schemas are read at once: each is a process, and a text of up to postgres.MaxSchemaBytes.
const maxDumps = 4

// BranchSchema describes a database of a branch. Its compute is woken for that.
func (s *Service) BranchSchema(ctx context.Context, c core.Caller, projectID, branchID string, p SchemaParams) (Schema, error) {
	project, b, err := s.branch(ctx, c, projectID, branchID)
	if err != nil {
		return Schema{}, err
	}
	if err := p.At.check(""); err != nil {
		return Schema{}, err
	}
	return s.schema(ctx, project, b, p)
}

// CompareSchemas compares a database of a branch with that of another one, its parent when none is named. The result is a
// unified diff that leads from the base to the branch; it is empty when there is no difference.
func (s *Service) CompareSchemas(ctx context.Context, c core.Caller, projectID, branchID string, p CompareParams) (string, error) {
	project, b, err := s.branch(ctx, c, projectID, branchID)
	if err != nil {
		return "", err
	}
	if err := p.At.check(""); err != nil {
		return "", err
	}
	if err := p.BaseAt.check("base_"); err != nil {
		return "", err
	}
	baseID := p.BaseBranchID
	if baseID == "" {
		baseID = b.ParentID
	}
	if baseID == "" && p.BaseAt != (Moment{}) {
		baseID = b.ID
	}
	if baseID == "" {
		return "", core.Invalidf("branch %s has no parent; name the branch to compare it with: base_branch_id", b.ID)
	}
	_, base, err := s.branch(ctx, c, projectID, baseID)
	if err != nil {
		return "", err
	}
	from, err := s.schema(ctx, project, base, SchemaParams{Database: p.Database, At: p.BaseAt})
	if err != nil {
		return "", err
	}
	to, err := s.schema(ctx, project, b, SchemaParams{Database: p.Database, At: p.At})
	if err != nil {
		return "", err
	}
	out := string(diff.Diff("a/"+p.Database, []byte(from.SQL), "b/"+p.Database, []byte(to.SQL)))
	if rest, ok := strings.CutPrefix(out, "diff "); ok { // the first line is a command, which nobody has given
		_, out, _ = strings.Cut(rest, "\n")
	}
	return out, nil
}

// check refuses a moment that says two things; prefix is that of the parameters.
func (m Moment) check(prefix string) error {
	if m.LSN != "" && m.Time != nil {
		return core.Invalidf("%slsn and %stimestamp cannot be given together", prefix, prefix)
	}
	if m.LSN != "" {
		_, err := core.ParseLSN(m.LSN)
		return err
	}
	return nil
}

func (s *Service) schema(ctx context.Context, project core.Project, b core.Branch, p SchemaParams) (Schema, error) {
	var tool postgres.Dumper
	var err error
	if !p.Tables {
		if tool, err = s.Builds.Dumper(ctx, project.PGVersion); err != nil {
			return Schema{}, err
		}
	}
	if err := s.dumps.Acquire(ctx, 1); err != nil {
		return Schema{}, err
	}
	defer s.dumps.Release(1)
	if err := s.awaitCatalog(ctx, b.ID); err != nil {
		return Schema{}, err
	}
	id, done, err := s.reading(ctx, b, p.At)
	if err != nil {
		return Schema{}, err
	}
	defer done()
	conn, err := s.Computes.Conn(ctx, id, postgres.AdminDatabase)
	if err != nil {
		return Schema{}, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	ok, err := postgres.Readable(ctx, conn, p.Database)
	if err != nil {
		return Schema{}, err
	}
	if !ok {
		return Schema{}, &core.Error{Kind: core.KindNotFound, Code: "DATABASE_NOT_FOUND", Message: "database \"" + clip(p.Database) + "\" not found on branch " + b.ID}
	}
	if p.Tables {
		tables, err := postgres.ReadTables(ctx, conn, p.Database)
		return Schema{Tables: tables}, err
	}
	dir, _ := s.Computes.SocketDir(id)
	sql, err := tool.Schema(ctx, dir, p.Database)
	if core.IsKind(err, core.KindInternal) && ctx.Err() == nil {
		if _, up, lookErr := s.reachable(ctx, b.ID); lookErr == nil && !up { // it crashed, or another server suspended it
			return Schema{}, &core.Error{Kind: core.KindUnavailable, Op: "control.schema", RetryAfter: time.Second, Err: err,
				Message: "the compute of branch " + b.ID + " has ended meanwhile; try again"}
		}
	}
	return Schema{SQL: sql}, err
}

// reading finds or starts a compute that shows a branch as it is, or was at a moment, and keeps it running until done is called.
// It wakes a sleeping endpoint as a connection does. A branch that cannot be woken runs without its endpoint, and sleeps again.
//
// A moment other than the head is to be served here: by a compute on a copy of the branch as it was then, which done removes.
func (s *Service) reading(ctx context.Context, b core.Branch, at Moment) (computeID string, done func(), err error) {
	if at != (Moment{}) {
		return "", nil, notBuilt("reading the schema at an LSN or a timestamp")
	}
	for range wakeAttempts {
		// A suspension takes the lock alone: it waits.
		unlock, err := s.locks.share(ctx, b.ID)
		if err != nil {
			return "", nil, err
		}
		id, up, err := s.reachable(ctx, b.ID)
		if up && err == nil {
			return id, unlock, nil
		}
		unlock()
		if err != nil {
			return "", nil, err
		}
		endpoints, err := s.Store.BranchEndpoints(ctx, b.ID)
		if err != nil {
			return "", nil, err
		}
		e := readWrite(endpoints)
		if e.ID == "" || e.Disabled {
			return s.readingApart(ctx, b.ID, e)
		}
		if _, err := s.Door().Wake(ctx, e.ID); err != nil {
			return "", nil, err
		}
	}
	return "", nil, core.Errorf(core.KindUnavailable, "", "the compute of branch %s is being suspended; try again", b.ID)
}

// readingApart starts a compute on a branch without an endpoint that could be woken; e may be empty. Whoever wants to work on
// the branch waits until done is called.
func (s *Service) readingApart(ctx context.Context, branchID string, e core.Endpoint) (computeID string, done func(), err error) {
	unlock, err := s.locks.lock(ctx, branchID)
	if err != nil {
		return "", nil, err
	}
	defer func() {
		if err != nil {
			unlock()
		}
	}()
	b, err := s.Store.BranchByID(ctx, branchID)
	switch {
	case err != nil:
		return "", nil, err
	case b.Deleting:
		return "", nil, core.NotFoundf("branch %q not found", branchID)
	case b.State != core.BranchReady && b.PendingState == "":
		return "", nil, core.Errorf(core.KindUnprocessable, "", "branch %s has no data: its creation failed; delete it", b.ID)
	case b.State != core.BranchReady:
		return "", nil, busy(b.ProjectID)
	}
	if err := s.holds(ctx, b.ProjectID); errors.Is(err, errBusy) {
		return "", nil, &core.Error{Kind: core.KindUnavailable, Op: "control.schema", RetryAfter: time.Second,
			Message: "another server works on project " + b.ProjectID + ", and branch " + b.ID + " has no compute that could be asked; ask that server, or add a compute"}
	} else if err != nil {
		return "", nil, err
	}
	if err := s.runnable(ctx, s.Store.Q, b.ProjectID, b.ID); err != nil {
		return "", nil, err
	}
	commit := func(ctx context.Context, c ops.Commit, err error) error {
		if err == nil && c != nil {
			err = s.Store.Tx(ctx, func(q store.Q) error { return c(ctx, q) })
		}
		return err
	}
	stop := func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		c, err := s.down(ctx, b, b.ID)
		if err := commit(ctx, c, err); err != nil {
			s.log.Warn("cannot stop a compute that was started to read a schema", "branch_id", b.ID, "error", err)
		}
	}
	spec, err := s.spec(ctx, b, b.ID, e)
	if err != nil {
		return "", nil, err
	}
	spec.IdleTimeout = -1
	_, first, err := s.up(ctx, b, spec)
	if err := commit(ctx, first, err); err != nil {
		stop()
		return "", nil, err
	}
	return b.ID, func() { stop(); unlock() }, nil
}
