// Package proxy owns the Postgres front door: it finds the endpoint a client asks for, authenticates the client, wakes the
// compute and relays the session (PostgreSQL documentation, "Frontend/Backend Protocol").
package proxy

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/proxy/pool"
)

// Options configure a Server.
type Options struct {
	Addr      string // host:port; port 0 picks a free one; a loopback host means 127.0.0.1 and ::1
	Directory Directory
	Meter     Meter // may be nil
	Domain    string

	// GetCertificate is the certificate source. Nil turns TLS off, which leaves only AllowPlaintext.
	GetCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// AllowPlaintext lets clients on the loopback interface in without TLS.
	AllowPlaintext bool

	HandshakeTimeout time.Duration // from accept to authenticated; 0: 15 s
	ConnectTimeout   time.Duration // from authenticated to the compute's ReadyForQuery, waking included; 0: 2 min
	MaxHandshakes    int           // clients that are not authenticated yet; 0: 1000
	QueueTimeout     time.Duration // how long a pooled client waits for a session; 0: 2 min

	// MockSecret makes the salts of unknown roles; keep it over restarts, or it can be told who exists. Nil: random.
	MockSecret []byte
	Log        *slog.Logger
}

// Server is the front door. Start it once.
type Server struct {
	opt   Options
	dir   Directory
	log   *slog.Logger
	tls   *tls.Config
	slots chan struct{} // one for each client that is not authenticated yet
	stats counters
	pools *pool.Pools

	mu        sync.Mutex
	listeners []net.Listener
	cancel    context.CancelCauseFunc // nil until started
	stopped   bool
	sessions  map[string]map[member]struct{} // by endpoint
	keys      map[cancelKey]member

	work sync.WaitGroup // accept loops and connections
}

// New makes a Server that does not listen yet.
func New(opt Options) *Server {
	if opt.HandshakeTimeout <= 0 {
		opt.HandshakeTimeout = 15 * time.Second
	}
	if opt.ConnectTimeout <= 0 {
		opt.ConnectTimeout = 2 * time.Minute
	}
	if opt.MaxHandshakes <= 0 {
		opt.MaxHandshakes = 1000
	}
	if len(opt.MockSecret) == 0 {
		opt.MockSecret = make([]byte, 32)
		_, _ = rand.Read(opt.MockSecret) // never fails
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	opt.Domain = strings.ToLower(strings.Trim(opt.Domain, "."))
	s := &Server{
		opt: opt, dir: opt.Directory, log: opt.Log,
		slots:    make(chan struct{}, opt.MaxHandshakes),
		sessions: map[string]map[member]struct{}{},
		keys:     map[cancelKey]member{},
	}
	s.pools = pool.New(pool.Options{Backend: opener{s}, Meter: poolMeter{s}, Log: s.log, QueueTimeout: opt.QueueTimeout})
	if opt.GetCertificate != nil {
		s.tls = &tls.Config{
			MinVersion:     tls.VersionTLS12,
			NextProtos:     []string{alpn},
			GetCertificate: s.certificateFor,
			// Postgres clients do not resume sessions, and a resumed one does not tell which certificate binds it.
			SessionTicketsDisabled: true,
			// The relay writes large blocks; small first records would only cost system calls.
			DynamicRecordSizingDisabled: true,
		}
	}
	return s
}

// Start listens and serves in the background until Stop, or until ctx ends. The error is KindUnavailable when the address
// is taken.
func (s *Server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cancel != nil || s.stopped {
		return nil
	}
	listeners, err := Listen(ctx, s.opt.Addr, s.log)
	if err != nil {
		return &core.Error{Kind: core.KindUnavailable, Op: "proxy.start", Message: "cannot listen on " + s.opt.Addr,
			Hint: "another server may use the port; --pg-listen chooses another one", Err: err}
	}
	base, cancel := context.WithCancelCause(ctx)
	if err := s.pools.Start(base); err != nil {
		cancel(err)
		return errors.Join(core.Wrap(err, "proxy.start", "cannot start the pools"), closeAll(listeners))
	}
	s.listeners, s.cancel = listeners, cancel
	context.AfterFunc(base, func() {
		for _, ln := range listeners {
			_ = ln.Close()
		}
	})
	for _, ln := range listeners {
		s.work.Go(func() { s.accept(base, ln) })
	}
	return nil
}

// Stop closes the door, ends the sessions and waits for them until ctx ends. Computes are left alone.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	s.stopped = true
	if s.cancel != nil {
		s.cancel(errServerStopping)
	}
	for _, ln := range s.listeners {
		_ = ln.Close()
	}
	s.mu.Unlock()

	done := make(chan struct{})
	go func() { // ends with the connections, whose deadlines are set by now
		defer close(done)
		s.work.Wait()
	}()
	if err := s.pools.Stop(ctx); err != nil {
		return core.Wrap(err, "proxy.stop", "pooled clients were still connected")
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return core.Wrap(ctx.Err(), "proxy.stop", "sessions were still open")
	}
}

// Addr is the first address that is listened on, nil before Start.
func (s *Server) Addr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.listeners) == 0 {
		return nil
	}
	return s.listeners[0].Addr()
}

func (s *Server) accept(ctx context.Context, ln net.Listener) {
	const maxPause = time.Second
	pause := time.Duration(0)
	for {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			// Out of file descriptors, most likely: sessions that end make room.
			pause = min(max(2*pause, 5*time.Millisecond), maxPause)
			s.log.Error("accepting a connection failed", "error", err, "pause", pause)
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			continue
		}
		pause = 0
		s.stats.total.Add(1)
		s.stats.open.Add(1)
		s.work.Go(func() { s.serve(ctx, conn) })
	}
}

// serve owns one connection from accept to close.
func (s *Server) serve(base context.Context, raw net.Conn) {
	c := newClientConn(raw)
	defer func() {
		if !c.adopted {
			c.close()
			s.stats.open.Add(-1)
		}
	}()

	select {
	case s.slots <- struct{}{}:
	default:
		s.stats.rejected.Add(1)
		// Nothing of a flood is read, and no time is spent on it.
		_ = raw.SetDeadline(time.Now().Add(time.Second))
		_ = c.send(fatalf(codeTooManyConnections, textTooManyHandshakes).response())
		return
	}
	hs, err := s.handshake(base, c)
	if err == nil && hs.cancel != nil {
		s.forwardCancel(base, *hs.cancel)
		err = errGone
	}
	if err != nil {
		s.refuse(c, err)
		<-s.slots
		return
	}
	<-s.slots
	if hs.pooled {
		s.runPooled(c, hs)
		return
	}
	s.run(base, c, hs)
}

// refuse tells a client that is not authenticated why it is turned away.
func (s *Server) refuse(c *clientConn, err error) {
	f := asFatal(err)
	if f == nil {
		return // gone, or never spoke our protocol
	}
	s.stats.rejected.Add(1)
	s.logRefusal(c, f)
	_ = c.net.SetDeadline(time.Now().Add(lingerTime))
	if c.send(f.response()) == nil {
		c.linger()
	}
}

func (s *Server) logRefusal(c *clientConn, f *fatal) {
	args := []any{"client", c.remote, "code", f.code, "reason", f.message}
	if f.cause != nil {
		args = append(args, "cause", f.cause)
	}
	if f.code == codeSystemError {
		s.log.Error("connection refused", args...)
		return
	}
	s.log.Info("connection refused", args...)
}

// CloseEndpoint ends every session of an endpoint and returns how many there were. Sessions that wait for the compute are
// told why; relayed ones end where the stream stands. Stop the compute first, and its own farewell (57P01) reaches them.
func (s *Server) CloseEndpoint(endpointID string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for m := range s.sessions[endpointID] {
		m.end()
	}
	return len(s.sessions[endpointID])
}

// Sessions counts the authenticated sessions of an endpoint, those that wait for its compute included.
func (s *Server) Sessions(endpointID string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions[endpointID])
}

// register makes a client known, and its cancel key.
func (s *Server) register(endpointID string, m member) (key cancelKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set := s.sessions[endpointID]
	if set == nil {
		set = map[member]struct{}{}
		s.sessions[endpointID] = set
	}
	set[m] = struct{}{}
	for { // eight random bytes hardly ever repeat, and must not
		key = newCancelKey()
		if _, taken := s.keys[key]; !taken {
			break
		}
	}
	s.keys[key] = m
	return key
}

func (s *Server) unregister(endpointID string, key cancelKey, m member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.keys, key)
	set := s.sessions[endpointID]
	delete(set, m)
	if len(set) == 0 {
		delete(s.sessions, endpointID)
	}
}

func closeAll(listeners []net.Listener) error {
	var errs []error
	for _, ln := range listeners {
		errs = append(errs, ln.Close())
	}
	return errors.Join(errs...)
}
