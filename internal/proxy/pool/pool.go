package pool

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"time"
)

const (
	platformSessions = 2   // what the platform takes of a compute's connections, the reserved ones being left free
	share            = 0.9 // of a compute's connections, for a role in a database
	assumedLimit     = 20  // of connections, until a compute has told its own
	maxConnecting    = 4   // sessions of a pool that are being opened at once

	tickEvery  = 5 * time.Millisecond   // while clients wait
	retryPause = 200 * time.Millisecond // after a session that could not be opened
	freshness  = time.Millisecond       // an idle session that was used since then is not looked at before it is used
)

// When a pool that has sessions for its processors grows: they are held for long, or a client waits for long. A queue of short
// transactions moves faster with few sessions than with many.
const (
	stuckAfter  = 3 * time.Millisecond
	longHold    = 10 * time.Millisecond
	patience    = 300 * time.Millisecond
	coresFactor = 4
)

// endpoint is what the pools of one endpoint share: the compute's connections.
type endpoint struct {
	l       *loop
	id      string
	pools   map[string]*pool
	groups  map[string]int // sessions by role and database
	limits  Limits
	servers int // sessions, those that are being opened included
	clients int
}

// pool shares the sessions of one role, database and set of startup parameters.
type pool struct {
	e          *endpoint
	key, group string
	params     map[string]string
	report     []Param // what the last server reported at its start
	defaults   *vars
	profiles   map[string]*vars // what servers made of startup parameters
	stmts      map[string]*stmt // by query and parameter types
	lastVars   *vars            // of the client that came last

	idle       []*server // the one used last is the last
	live       int
	connecting int
	clients    int
	waiting    clientList
	queued     bool      // in loop.dirty
	retryAt    time.Time // no session is opened before, when there are others

	hold        time.Duration // average time that a session is held
	lastRelease time.Time
}

func (l *loop) endpoint(id string) *endpoint {
	e := l.endpoints[id]
	if e == nil {
		e = &endpoint{l: l, id: id, pools: map[string]*pool{}, groups: map[string]int{}}
		l.endpoints[id] = e
	}
	return e
}

// pool finds the pool for startup parameters, without those that are kept per client.
func (e *endpoint) pool(params map[string]string) *pool {
	names := make([]string, 0, len(params))
	for name := range params {
		names = append(names, name)
	}
	slices.Sort(names)
	var key strings.Builder
	for _, name := range names {
		key.WriteString(name + "\x00" + params[name] + "\x00")
	}
	p := e.pools[key.String()]
	if p == nil {
		p = &pool{
			e: e, key: key.String(), group: params["user"] + "\x00" + params["database"], params: params,
			profiles: map[string]*vars{}, stmts: map[string]*stmt{},
		}
		e.pools[p.key] = p
	}
	return p
}

// tidy forgets pools and endpoints that nobody uses.
func (p *pool) tidy() {
	e := p.e
	if p.clients > 0 || p.live > 0 || p.connecting > 0 {
		return
	}
	if e.pools[p.key] == p {
		delete(e.pools, p.key)
	}
	if len(e.pools) == 0 && e.l.endpoints[e.id] == e {
		delete(e.l.endpoints, e.id)
	}
}

func (p *pool) changed() {
	if !p.queued {
		p.queued = true
		p.e.l.dirty = append(p.e.l.dirty, p)
	}
}

// handOut gives idle sessions to those who wait, first come first served.
func (l *loop) handOut() {
	for len(l.dirty) > 0 {
		p := l.dirty[len(l.dirty)-1]
		l.dirty = l.dirty[:len(l.dirty)-1]
		p.queued = false
		for p.waiting.first != nil {
			s := p.take()
			if s == nil {
				break
			}
			c := p.waiting.first
			p.waiting.remove(c)
			c.serve(s)
		}
		p.grow()
	}
}

// take returns an idle session, nil when there is none. One that has been idle for a moment may have ended, and its end not
// have been reported yet.
func (p *pool) take() *server {
	for len(p.idle) > 0 {
		s := p.idle[len(p.idle)-1]
		if p.e.l.now.Sub(s.since) > freshness && s.ended() {
			s.quit()
			continue
		}
		p.idle[len(p.idle)-1] = nil
		p.idle = p.idle[:len(p.idle)-1]
		return s
	}
	return nil
}

// groupMax and max bound the sessions of a role in a database, and of the endpoint.
func (e *endpoint) max() int {
	if e.limits.MaxConnections == 0 {
		return assumedLimit
	}
	return max(1, e.limits.MaxConnections-e.limits.Reserved-platformSessions)
}

func (e *endpoint) groupMax() int {
	if e.limits.MaxConnections == 0 {
		return 1
	}
	return max(1, min(e.max(), int(share*float64(e.limits.MaxConnections))))
}

// grow opens sessions for those who wait.
func (p *pool) grow() {
	if p.waiting.first == nil {
		return
	}
	l := p.e.l
	l.at(l.now.Add(tickEvery))
	for p.waiting.n > p.connecting && p.connecting < maxConnecting && p.e.groups[p.group] < p.e.groupMax() && p.useful() {
		if p.e.servers >= p.e.max() && !p.e.evict(p) {
			return
		}
		p.connect()
	}
}

// useful tells whether another session would serve those who wait sooner.
func (p *pool) useful() bool {
	now := p.e.l.now
	switch {
	case now.Before(p.retryAt):
		return false
	case p.live+p.connecting < coresFactor*runtime.GOMAXPROCS(0):
		return true
	case p.connecting > 0:
		return false
	}
	return now.Sub(p.lastRelease) > stuckAfter || p.hold > longHold || now.Sub(p.waiting.first.since) > patience
}

// evict makes room for a session of a pool by closing an idle one of another pool.
func (e *endpoint) evict(for_ *pool) bool {
	var from *pool
	for _, p := range e.pools {
		if p != for_ && len(p.idle) > 0 && (from == nil || len(p.idle) > len(from.idle)) {
			from = p
		}
	}
	if from == nil {
		return false
	}
	from.idle[0].quit()
	return true
}

// cedes tells whether a session that became free makes room for another pool's: somebody there has waited for longer than
// anybody here.
func (p *pool) cedes() bool {
	e := p.e
	if e.servers < e.max() || len(e.pools) == 1 {
		return false
	}
	for _, o := range e.pools {
		if o != p && o.waiting.first != nil && o.connecting == 0 && e.groups[o.group] < e.groupMax() && o.useful() &&
			(p.waiting.first == nil || o.waiting.first.since.Before(p.waiting.first.since)) {
			o.changed()
			return true
		}
	}
	return false
}

// connect opens a session in the background.
func (p *pool) connect() {
	e, l := p.e, p.e.l
	p.connecting++
	e.servers++
	e.groups[p.group]++
	pools, limits := l.pools, e.limits.MaxConnections == 0
	pools.work.Go(func() {
		session, err := pools.opt.Backend.Connect(pools.base, e.id, p.params, limits)
		fd := -1
		if err == nil {
			fd, err = takeOver(session.Conn)
		}
		if !l.post(func() { p.connected(session, fd, err) }) && fd >= 0 {
			closeFD(fd)
		}
	})
}

func (p *pool) connected(session *Session, fd int, err error) {
	p.connecting--
	if err == nil {
		s := &server{pool: p, cancel: session.Cancel, since: p.e.l.now, status: 'I', vars: trackedOf(session.Params)}
		if err = p.e.l.add(&s.sock, fd, s); err == nil {
			if session.Limits.MaxConnections > 0 {
				p.e.limits = session.Limits
			}
			p.live++
			if p.defaults == nil || !p.defaults.equal(s.vars) {
				clear(p.profiles)
			}
			p.report, p.defaults = session.Params, s.vars
			p.idle = append(p.idle, s)
			p.changed()
			return
		}
	}
	p.forget()
	r := refusalOf(err)
	full := r.Code == codeTooMany // direct sessions have what is left: those who wait go on waiting
	if full || p.live > 0 {
		p.retryAt = p.e.l.now.Add(retryPause)
	}
	if !errors.Is(err, context.Canceled) {
		p.e.l.pools.opt.Log.Debug("a pooled session was not opened", "endpoint", p.e.id, "error", err)
	}
	if p.live == 0 && p.connecting == 0 && !full {
		// Nobody else will serve those who wait.
		if r.Err != nil {
			p.e.l.pools.opt.Log.Error("pooled clients got no compute", "endpoint", p.e.id, "clients", p.waiting.n, "error", err)
		}
		for c := p.waiting.first; c != nil; c = p.waiting.first {
			p.waiting.remove(c)
			c.denied(r)
		}
	}
	if full {
		p.e.l.at(p.retryAt)
	}
	p.tidy()
}

// codeTooMany is PostgreSQL's too_many_connections.
const codeTooMany = "53300"

// forget takes a session that is gone, or was never opened, out of the counts.
func (p *pool) forget() {
	e := p.e
	e.servers--
	if e.groups[p.group]--; e.groups[p.group] == 0 {
		delete(e.groups, p.group)
	}
	if e.servers == 0 {
		e.limits = Limits{} // the next compute may have another size
	}
	for _, o := range e.pools {
		if o.waiting.first != nil {
			o.changed()
		}
	}
}

// tick looks after those who wait for too long, and sessions that nobody needs.
func (e *endpoint) tick() {
	l := e.l
	for _, p := range e.pools {
		for c := p.waiting.first; c != nil && l.now.Sub(c.since) > l.pools.opt.QueueTimeout; c = p.waiting.first {
			c.end(&Refusal{Code: "08P01", Message: "query_wait_timeout",
				Hint: "All sessions of the pool were in use for too long: end transactions sooner, or make the compute larger."})
		}
		if p.waiting.first != nil {
			p.changed() // grow sets the next tick
		}
		for len(p.idle) > 0 && l.now.Sub(p.idle[0].since) > l.pools.opt.IdleTimeout {
			p.idle[0].quit()
		}
		if p.live > 0 {
			l.at(l.now.Add(min(time.Second, l.pools.opt.IdleTimeout)))
		}
	}
}

// clientList is a queue.
type clientList struct {
	first, last *client
	n           int
}

func (q *clientList) add(c *client) {
	c.prev, c.next = q.last, nil
	if q.last != nil {
		q.last.next = c
	} else {
		q.first = c
	}
	q.last = c
	q.n++
}

func (q *clientList) remove(c *client) {
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		q.first = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	} else {
		q.last = c.prev
	}
	c.prev, c.next = nil, nil
	q.n--
}
