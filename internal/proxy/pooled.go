package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/sys/unix"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/proxy/pool"
)

// limitsSQL asks for pool.Limits. reserved_connections came with PostgreSQL 16.
const limitsSQL = "SELECT pg_catalog.current_setting('max_connections') || ' ' || " +
	"(pg_catalog.current_setting('superuser_reserved_connections')::int + coalesce(pg_catalog.current_setting('reserved_connections', true), '0')::int)"

const limitsTimeout = 10 * time.Second

// runPooled hands an authenticated client of a pooled host over to the pools.
func (s *Server) runPooled(c *clientConn, hs *handshake) {
	greeting, err := encodeAll(hs.final...)
	if err != nil {
		return
	}
	_ = c.raw.SetDeadline(time.Time{})
	login := pool.Login{EndpointID: hs.target.EndpointID, Params: hs.params, Greeting: greeting, Conn: c.raw, TLS: c.tls}
	if c.side != nil {
		login.Rebase = func(conn net.Conn) { c.side.Conn = conn }
	}
	login.Closed = func() { s.stats.open.Add(-1) }
	c.adopted = true
	if err := s.enter(login, c.remote); err != nil {
		s.log.Debug("the pools did not take a client", "error", err)
	}
}

// enter makes a client known and hands it over to the pools. login.Closed is called in any case; the login's key is set here.
func (s *Server) enter(login pool.Login, remote netip.Addr) error {
	id, left := login.EndpointID, login.Closed
	m := &pooledClient{}
	key := s.register(id, m)
	s.stats.sessions.Add(1)
	if s.opt.Meter != nil {
		s.opt.Meter.SessionOpened(id)
	}
	log := s.log.With("endpoint", id, "role", login.Params["user"], "database", login.Params["database"], "client", remote, "pooled", true)
	log.Debug("session opened")
	began := time.Now()
	login.Closed = func() {
		s.unregister(id, key, m)
		s.stats.sessions.Add(-1)
		if s.opt.Meter != nil {
			s.opt.Meter.SessionClosed(id)
		}
		log.Debug("session closed", "duration", time.Since(began))
		left()
	}
	var err error
	if login.KeyData, err = key.message().Encode(nil); err == nil {
		err = m.adopt(s.pools, login)
	}
	if err != nil {
		_ = login.Conn.Close()
		login.Closed()
	}
	return err
}

// Connect opens a pooled connection from within the server, for a caller that has authenticated the role. It wakes the compute when
// that is not known to be awake, waits until ctx ends, and belongs to the pool like any client: it costs a session of the compute for
// the length of a transaction only, and may be kept open. What ends ctx during a call of the connection closes it, and interrupts
// its query. params are startup parameters; user and database are set from role and database.
func (s *Server) Connect(ctx context.Context, endpointID, role, database string, params map[string]string) (*pgconn.PgConn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, core.Wrap(err, "proxy.connect", "")
	}
	near, err := fdConn(fds[0])
	far, ferr := fdConn(fds[1])
	if err = errors.Join(err, ferr); err == nil {
		login := pool.Login{EndpointID: endpointID, Params: maps.Clone(params), Conn: far, Closed: func() {}}
		if login.Params == nil {
			login.Params = map[string]string{}
		}
		login.Params["user"], login.Params["database"] = role, database
		err = s.enter(login, netip.Addr{})
	}
	if err != nil {
		if near != nil {
			_ = near.Close()
		}
		return nil, core.Wrap(err, "proxy.connect", "")
	}
	conn, err := welcomed(ctx, near)
	if err != nil {
		_ = near.Close()
	}
	return conn, err
}

// fdConn makes a connection of a socket, which it takes over.
func fdConn(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "pooled")
	defer func() { _ = f.Close() }() // FileConn duplicates it
	return net.FileConn(f)
}

// welcomed reads what a client gets after it has authenticated. The error is the server's *pgconn.PgError when it refuses the client.
func welcomed(ctx context.Context, conn net.Conn) (*pgconn.PgConn, error) {
	cfg, err := pgconn.ParseConfig("host=/ user=pooled sslmode=disable")
	if err != nil {
		return nil, core.Wrap(err, "proxy.connect", "")
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	hc := &pgconn.HijackedConn{Conn: conn, ParameterStatuses: map[string]string{}, Config: cfg}
	front := pgproto3.NewFrontend(conn, nil)
	for {
		msg, err := front.Receive()
		if err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return nil, core.Wrap(err, "proxy.connect", "")
		}
		switch msg := msg.(type) {
		case *pgproto3.ErrorResponse:
			return nil, pgconn.ErrorResponseToPgError(msg)
		case *pgproto3.ParameterStatus:
			hc.ParameterStatuses[msg.Name] = msg.Value
		case *pgproto3.BackendKeyData:
			hc.PID, hc.SecretKey = msg.ProcessID, slices.Clone(msg.SecretKey)
		case *pgproto3.ReadyForQuery:
			hc.TxStatus = msg.TxStatus
			return pgconn.Construct(hc)
		}
	}
}

// pooledClient is a client that the pools serve.
type pooledClient struct {
	mu     sync.Mutex
	handle *pool.Client // nil until it is adopted
}

func (m *pooledClient) adopt(pools *pool.Pools, login pool.Login) (err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.handle, err = pools.Adopt(login)
	return err
}

func (m *pooledClient) client() *pool.Client {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.handle
}

func (m *pooledClient) cancelQuery(ctx context.Context) bool {
	h := m.client()
	return h != nil && h.Cancel(ctx)
}

func (m *pooledClient) end() {
	if h := m.client(); h != nil {
		h.End(&pool.Refusal{Code: codeAdminShutdown, Message: textSessionCut})
	}
}

// opener opens sessions for the pools; see pool.Backend.
type opener struct{ s *Server }

// Connect implements pool.Backend.
func (o opener) Connect(ctx context.Context, endpointID string, params map[string]string, limits bool) (*pool.Session, error) {
	up, err := o.s.openSession(ctx, endpointID, params, cancelKey{})
	if err != nil {
		return nil, refusalFor(err, endpointID)
	}
	session := &pool.Session{Conn: up.conn, Params: up.params, Cancel: func(ctx context.Context) { up.interrupt(ctx) }}
	if limits {
		if session.Limits, err = up.limits(ctx); err != nil {
			_ = up.conn.Close()
			return nil, refusalFor(err, endpointID)
		}
	}
	up.out, up.params = nil, nil
	return session, nil
}

// limits asks for what bounds the number of sessions.
func (up *backendSession) limits(ctx context.Context) (l pool.Limits, err error) {
	ctx, cancel := context.WithTimeout(ctx, limitsTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = up.conn.SetDeadline(time.Now()) })
	defer stop()
	msg, err := (&pgproto3.Query{String: limitsSQL}).Encode(nil)
	if err != nil {
		return l, err
	}
	if _, err := up.conn.Write(msg); err != nil {
		return l, err
	}
	up.out = up.out[:0]
	if err := up.exchange(); err != nil {
		return l, err
	}
	for rest := up.out; len(rest) >= 5; {
		size := int(binary.BigEndian.Uint32(rest[1:5])) + 1
		var row pgproto3.DataRow
		if rest[0] == 'D' && row.Decode(rest[5:size]) == nil && len(row.Values) == 1 {
			_, err := fmt.Sscan(string(row.Values[0]), &l.MaxConnections, &l.Reserved)
			return l, err
		}
		rest = rest[size:]
	}
	return l, errors.New("the compute did not tell its limits")
}

// refusalFor is what a client sees of an error of openSession.
func refusalFor(err error, endpointID string) error {
	if r, ok := errors.AsType[*refusedError](err); ok {
		return &pool.Refusal{Code: r.code, Raw: r.last, Err: err}
	}
	f := asFatal(err)
	if f == nil {
		if errors.Is(err, context.Canceled) {
			return err
		}
		f = directoryError(err, "connect to", endpointID)
	}
	r := &pool.Refusal{Code: f.code, Message: f.message, Hint: f.hint}
	if f.code == codeSystemError || f.code == codeCannotConnectNow {
		r.Err = err
	}
	r.Final = strings.HasPrefix(f.code, "28") // there is no such endpoint
	return r
}

// poolMeter is what the pools tell of what passes.
type poolMeter struct{ s *Server }

// Transferred implements pool.Meter.
func (m poolMeter) Transferred(endpointID string, fromClient, toClient int64) {
	if meter := m.s.opt.Meter; meter != nil {
		meter.Transferred(endpointID, fromClient, toClient)
	}
}

// Relayed implements pool.Meter.
func (m poolMeter) Relayed(fromClients, toClients int64) {
	m.s.stats.fromClients.Add(fromClients)
	m.s.stats.toClients.Add(toClients)
}
