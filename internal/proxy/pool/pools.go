// Package pool shares the sessions of computes among clients, for a transaction each (PostgreSQL documentation,
// "Frontend/Backend Protocol"). It owns the sockets of authenticated clients on pooled hosts, and of the sessions that serve
// them. Clients outlive the compute: one that is not in a transaction does not notice that its compute slept or crashed.
package pool

import (
	"context"
	"crypto/tls"
	"errors"
	"hash/maphash"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"time"
)

const (
	lingerTime   = time.Second       // for a client to read our last words
	queueTimeout = 120 * time.Second // PgBouncer's query_wait_timeout
	idleTimeout  = 2 * time.Minute   // of a session that nobody needs
)

// Param is a session parameter that a server has reported (ParameterStatus).
type Param struct{ Name, Value string }

// Limits are a compute's settings that bound its sessions; zero: not known.
type Limits struct {
	MaxConnections int
	Reserved       int // for superusers and roles with pg_use_reserved_connections
}

// Session is an open session in a compute, up to its first ReadyForQuery.
type Session struct {
	Conn   *net.UnixConn
	Params []Param
	Cancel func(ctx context.Context) // interrupts what the session does, and returns when the signal was sent
	Limits Limits
}

// Backend opens sessions.
type Backend interface {
	// Connect wakes the endpoint's compute and opens a session with these startup parameters. With limits it asks for
	// Session.Limits, too. A *Refusal is shown to the client, any other error is logged and hidden.
	Connect(ctx context.Context, endpointID string, params map[string]string, limits bool) (*Session, error)
}

// Meter is told what passes, from the path of the messages: it must return at once.
type Meter interface {
	// Transferred is called about every MiB of a client and at its end, in bytes of the protocol, without TLS.
	Transferred(endpointID string, fromClient, toClient int64)
	// Relayed is called often, with the bytes of all endpoints.
	Relayed(fromClients, toClients int64)
}

// Refusal is an error for a client.
type Refusal struct {
	Code, Message, Hint string
	Raw                 []byte // the compute's own ErrorResponse, in place of the other fields
	Final               bool   // trying again is of no use: the client is disconnected
	Err                 error  // for the log
}

func (r *Refusal) Error() string {
	if r.Err != nil {
		return r.Message + " (" + r.Code + "): " + r.Err.Error()
	}
	return r.Message + " (" + r.Code + ")"
}

func (r *Refusal) Unwrap() error { return r.Err }

// Options configure Pools.
type Options struct {
	Backend Backend
	Meter   Meter
	Log     *slog.Logger

	QueueTimeout time.Duration // how long a client waits for a session; 0: 120 s
	IdleTimeout  time.Duration // after which a session that nobody needs is closed; 0: 2 min
}

// Pools are the pools of all endpoints. Start them once.
type Pools struct {
	opt  Options
	seed maphash.Seed

	mu      sync.Mutex
	loops   []*loop
	base    context.Context
	cancel  context.CancelFunc
	stopped bool
	work    sync.WaitGroup
}

// New makes Pools that do nothing yet.
func New(opt Options) *Pools {
	if opt.QueueTimeout <= 0 {
		opt.QueueTimeout = queueTimeout
	}
	if opt.IdleTimeout <= 0 {
		opt.IdleTimeout = idleTimeout
	}
	return &Pools{opt: opt, seed: maphash.MakeSeed()}
}

// Start makes the event loops. An endpoint belongs to one of them, so the number of processors bounds their number.
func (p *Pools) Start(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cancel != nil || p.stopped {
		return nil
	}
	for range runtime.GOMAXPROCS(0) {
		l, err := newLoop(p)
		if err != nil {
			for _, l := range p.loops {
				l.close()
			}
			p.loops = nil
			return err
		}
		p.loops = append(p.loops, l)
	}
	p.base, p.cancel = context.WithCancel(ctx)
	for _, l := range p.loops {
		p.work.Go(func() { l.run(p.base) })
	}
	return nil
}

// Stop tells the clients, ends their transactions and waits until all is closed, or ctx ends.
func (p *Pools) Stop(ctx context.Context) error {
	p.mu.Lock()
	p.stopped = true
	if p.cancel != nil {
		p.cancel()
	}
	p.mu.Unlock()
	done := make(chan struct{})
	go func() { // ends with the loops, which have a limit
		defer close(done)
		p.work.Wait()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *Pools) loopOf(endpointID string) *loop {
	return p.loops[maphash.String(p.seed, endpointID)%uint64(len(p.loops))]
}

func (p *Pools) count(s *stats) {
	if m := p.opt.Meter; m != nil && (s.fromClients > 0 || s.toClients > 0) {
		m.Relayed(s.fromClients, s.toClients)
	}
	*s = stats{}
}

// Report tells the Meter what clients have moved since it was told last.
func (p *Pools) Report() {
	p.mu.Lock()
	loops := p.loops
	p.mu.Unlock()
	for _, l := range loops {
		done := make(chan struct{})
		ok := l.post(func() {
			defer close(done)
			for _, s := range l.socks {
				if s == nil {
					continue
				}
				if c, ok := s.owner.(*client); ok {
					c.report()
				}
			}
		})
		if ok {
			<-done
		}
	}
}

// Login is an authenticated client that is to be served.
type Login struct {
	EndpointID string
	Params     map[string]string // startup parameters for the compute: user, database and what the client sent
	Greeting   []byte            // what the client gets first: AuthenticationOk
	KeyData    []byte            // its BackendKeyData message

	// Conn is the network connection. TLS, on top of it, has completed its handshake; nil: none. Rebase makes it use
	// another connection.
	Conn   net.Conn
	TLS    *tls.Conn
	Rebase func(net.Conn)

	Closed func() // called once, when the client is gone; must return at once
}

// errStopped means that the pools do not take clients any more.
var errStopped = errors.New("the pools have stopped")

// Adopt takes a client over. Closed is called at its end, and not when Adopt fails.
func (p *Pools) Adopt(login Login) (*Client, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped || p.cancel == nil {
		return nil, errStopped
	}
	l := p.loopOf(login.EndpointID)
	fd, err := takeOver(login.Conn)
	if err != nil {
		return nil, err
	}
	c := &client{}
	if !l.post(func() { l.adopt(c, fd, login) }) {
		return nil, errStopped
	}
	return &Client{c: c, l: l}, nil
}

// Client is a handle on an adopted client, for use from any goroutine.
type Client struct {
	c *client
	l *loop
}

// End disconnects the client with an error.
func (h *Client) End(r *Refusal) { h.l.post(func() { h.c.end(r) }) }

// Cancel interrupts what the client waits for: a query, or a session for it. It returns when the signal was sent. Until then
// the session does not serve anybody else.
func (h *Client) Cancel(ctx context.Context) (sent bool) {
	type target struct {
		s      *server
		cancel func(context.Context)
	}
	found := make(chan target, 1)
	ok := h.l.post(func() {
		s := h.c.interrupt()
		if s == nil {
			found <- target{}
			return
		}
		s.cancels++
		found <- target{s, s.cancel}
	})
	if !ok {
		return false
	}
	t := <-found
	if t.s == nil {
		return false
	}
	t.cancel(ctx)
	h.l.post(func() {
		t.s.cancels--
		t.s.settle()
	})
	return true
}
