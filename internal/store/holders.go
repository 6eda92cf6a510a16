package store

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/store/db"
)

// Holder says which server works on a project. The zero value means that none does.
type Holder struct {
	Server int64 // its number; see internal/ops
	Ready  bool  // it has taken over what an earlier one left running
}

// HoldProject makes a project the server's unless one holds it already, and returns who does: the zero value when there is
// no such project. It is ready at once when nothing is recorded as running.
func (q Q) HoldProject(ctx context.Context, projectID string, server int64) (Holder, error) {
	if err := q.db.HoldProject(ctx, db.HoldProjectParams{ProjectID: projectID, Server: server}); err != nil {
		return Holder{}, internal(err)
	}
	h, err := q.db.GetHolder(ctx, projectID)
	if errors.Is(err, pgx.ErrNoRows) {
		return Holder{}, nil
	}
	return Holder(h), internal(err)
}

// InheritProject gives a dead server's project to an heir; ok is false when somebody was faster.
func (q Q) InheritProject(ctx context.Context, projectID string, dead, heir int64) (ok bool, err error) {
	n, err := q.db.InheritProject(ctx, db.InheritProjectParams{ProjectID: projectID, Dead: dead, Heir: heir})
	return n > 0, internal(err)
}

// InheritProjects gives the heir those projects of a dead server in which something runs or is to be done; the others are
// nobody's then. What the heir has to take over is in UnreadyProjects.
func (s *Store) InheritProjects(ctx context.Context, dead, heir int64) error {
	return s.Tx(ctx, func(q Q) error {
		if err := q.db.InheritProjects(ctx, db.InheritProjectsParams{Dead: dead, Heir: heir}); err != nil {
			return internal(err)
		}
		return internal(q.db.DropHolder(ctx, dead))
	})
}

// UnreadyProjects are those that the server holds and has not taken over yet.
func (q Q) UnreadyProjects(ctx context.Context, server int64) ([]string, error) {
	ids, err := q.db.ListUnreadyProjects(ctx, server)
	return ids, internal(err)
}

// ReadyProject says that the server has taken over what runs in a project: from now on it works on it.
func (q Q) ReadyProject(ctx context.Context, projectID string, server int64) error {
	return internal(q.db.ReadyProject(ctx, db.ReadyProjectParams{ProjectID: projectID, Server: server}))
}

// HoldAlone forgets every other server, and makes the projects in which something runs the server's, which has taken it over.
// It is for a server that starts while no other one runs.
func (s *Store) HoldAlone(ctx context.Context, server int64) error {
	return s.Tx(ctx, func(q Q) error {
		if err := q.db.ResetHolders(ctx); err != nil {
			return internal(err)
		}
		return internal(q.db.HoldBusyProjects(ctx, server))
	})
}

// LeaveProjects makes those of a server's projects nobody's in which nothing runs and nothing is to be done.
func (q Q) LeaveProjects(ctx context.Context, server int64) ([]string, error) {
	ids, err := q.db.LeaveProjects(ctx, server)
	return ids, internal(err)
}

// Head is the first open operation of a branch, as far as the question goes who works on it.
type Head struct {
	ProjectID string
	Claimed   bool
	Holder    Holder
}

// Head tells who is to work on a branch; ok is false when there is nothing to do.
func (q Q) Head(ctx context.Context, branchID string) (h Head, ok bool, err error) {
	r, err := q.db.HeadHolder(ctx, branchID)
	if errors.Is(err, pgx.ErrNoRows) {
		return h, false, nil
	}
	if err != nil {
		return h, false, internal(err)
	}
	h = Head{ProjectID: r.ProjectID, Claimed: r.ClaimedBy != nil}
	if r.Server != nil && r.Ready != nil {
		h.Holder = Holder{*r.Server, *r.Ready}
	}
	return h, true, nil
}

// channel is that of the messages between the servers of a control database.
const channel = "bough"

// Tell sends a message to every server that listens, the own one too; within a transaction, with its commit. The text is
// short: NOTIFY takes 8000 bytes.
func (q Q) Tell(ctx context.Context, text string) error {
	_, err := q.tx.Exec(ctx, "SELECT pg_notify($1, $2)", channel, text)
	return internal(err)
}

// listenPause is how long a broken session for messages waits before the next one is tried.
const listenPause = time.Second

// Listen calls told with every message until ctx ends. Messages of a time in which the session was broken are lost: who
// listens looks by itself, too. broken is told of such an end.
func (s *Store) Listen(ctx context.Context, told func(text string), broken func(error)) {
	for ctx.Err() == nil {
		if err := s.listen(ctx, told); err != nil && ctx.Err() == nil {
			broken(internal(err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(listenPause):
		}
	}
}

func (s *Store) listen(ctx context.Context, told func(text string)) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	c := conn.Hijack() // never back to the pool: it listens
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
	if _, err := c.Exec(ctx, "LISTEN "+channel); err != nil {
		return err
	}
	for {
		n, err := c.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		told(strings.Clone(n.Payload))
	}
}
