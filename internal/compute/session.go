package compute

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/postgres"
)

// session is the platform's one kept session to a running compute: the monitor's looks, the question for a verifier that
// every new connection asks, a look at the catalogs. A backend of its own for each of them would cost every compute some
// megabytes, and a fork for each use.
type session struct {
	turn   chan struct{} // holds one token while nobody uses the session
	conn   *pgx.Conn     // nil until first used, and after it broke
	closed bool
	visit  bool // of a compute that somebody else may stop at any moment: a session that breaks off says no more than that
}

func newSession(conn *pgx.Conn) *session {
	s := &session{turn: make(chan struct{}, 1), conn: conn}
	s.turn <- struct{}{}
	return s
}

// do runs fn with the session, one caller at a time, after opening it where needed. ctx bounds the wait too.
func (s *session) do(ctx context.Context, socketDir string, fn func(conn *pgx.Conn) error) error {
	select {
	case <-s.turn:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { s.turn <- struct{}{} }()
	if s.closed {
		return errStoppedNow
	}
	if s.conn != nil && !s.conn.IsClosed() {
		err := fn(s.conn)
		if err == nil || !s.conn.IsClosed() || ctx.Err() != nil {
			return err
		}
		// It broke off, perhaps long ago.
	}
	conn, err := postgres.Connect(ctx, socketDir, postgres.AdminDatabase)
	if err == nil {
		s.conn = conn
		err = fn(conn)
	}
	if err != nil && s.visit && ctx.Err() == nil && (conn == nil || conn.IsClosed()) {
		return &core.Error{Kind: core.KindUnavailable, Message: "the compute is not running", Err: err}
	}
	return err
}

// close ends the session for good, after the use under way.
func (s *session) close(ctx context.Context) {
	<-s.turn
	s.closed = true
	closeConn(ctx, s.conn)
	s.turn <- struct{}{}
}

var errStoppedNow = core.Errorf(core.KindUnavailable, "", "the compute is not running")

// Do runs fn with the platform's kept session to a running compute's postgres database. fn must be quick and leave
// nothing behind in the session; it is called a second time when the session broke off.
func (m *Manager) Do(ctx context.Context, endpointID string, fn func(conn *pgx.Conn) error) error {
	s, dir, ok := m.reach(endpointID)
	if !ok {
		return core.Errorf(core.KindUnavailable, "", "the compute of endpoint %s is not running", endpointID)
	}
	return core.Wrap(s.do(ctx, dir, fn), "compute.do", "")
}
