package pool

import (
	"context"
	"crypto/tls"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	keptInput  = 1 << 10 // bytes of a buffer for input that an idle client keeps
	meterEvery = 1 << 20 // bytes between two calls of the Meter
)

// client is an authenticated client. One that is idle costs this and the state of its TLS.
type client struct {
	sock
	pool   *pool
	srv    *server // nil: no transaction
	tls    *tls.Conn
	closed func()

	state clientState
	since time.Time // when it began to wait, or to go
	prev  *client
	next  *client

	login   []byte  // its BackendKeyData, until it is welcome
	own     []Param // startup parameters that are kept for it, the same
	vars    *vars
	stmts   map[string]*stmt
	unnamed []byte // what followed the name in the last Parse without one

	in          []byte // what is not dealt with yet
	raw         int    // bytes of the present message that are still to come, and are not looked at
	rawDrop     bool   // they go nowhere
	batch       bool   // it has sent something since the last Sync
	skip        bool   // it gets nothing until its next Sync
	held        bool   // its next transaction waits until the present one is answered: others wait, too
	ownUnnamed  bool   // its session has its unnamed statement
	asked       bool   // it has sent something in its transaction
	began       bool   // a BEGIN may be under way
	unnamedVerb verb
	boundVerb   verb
	warned      effect

	busy  bool // feed works
	again bool // and has to look once more

	aborted bool   // its transaction is lost, and its end has not come yet
	failure []byte // the ErrorResponse that says so, until it is sent

	from, to int64 // not metered yet
}

type clientState uint8

const (
	stateIdle     clientState = iota // or in a transaction
	stateWaiting                     // in pool.waiting
	stateClosing                     // it was told why; see loop.closing
	stateStarting                    // in its login, with a session
)

// adopt begins to serve a client.
func (l *loop) adopt(c *client, fd int, login Login) {
	if err := l.add(&c.sock, fd, c); err != nil {
		l.pools.opt.Log.Error("cannot serve a pooled client", "error", err)
		login.Closed()
		return
	}
	session, own := splitParams(login.Params)
	e := l.endpoint(login.EndpointID)
	p := e.pool(session)
	p.clients++
	e.clients++
	c.pool, c.closed, c.login, c.own = p, login.Closed, login.KeyData, own
	if login.TLS != nil {
		c.tls = login.TLS
		login.Rebase(netConn{&c.sock})
	}
	if l.pools.base.Err() != nil {
		c.send(login.Greeting)
		c.end(shuttingDown())
		return
	}
	if v := p.profiles[profileKey(own)]; v != nil && p.live > 0 {
		c.vars = v
		c.welcome(login.Greeting)
	} else {
		c.send(login.Greeting)
		c.wait()
	}
	c.pump() // what the TLS library has already read is not reported again
}

// profileKey names what servers make of startup parameters. The application's name is free text, and taken as it is.
func profileKey(own []Param) string {
	var b strings.Builder
	for _, p := range own {
		if !strings.EqualFold(p.Name, "application_name") {
			b.WriteString(strings.ToLower(p.Name) + "\x00" + p.Value + "\x00")
		}
	}
	return b.String()
}

// welcome ends the login. c.vars is right but for the application's name.
func (c *client) welcome(before []byte) {
	const maxProfiles = 100
	p := c.pool
	key := profileKey(c.own)
	if len(p.profiles) >= maxProfiles {
		clear(p.profiles)
	}
	p.profiles[key] = c.vars
	if _, ok := c.vars.get("application_name"); ok {
		name := ""
		for _, o := range c.own {
			if strings.EqualFold(o.Name, "application_name") {
				name = o.Value
			}
		}
		c.vars = c.vars.with("application_name", name)
		if d := p.lastVars; d != nil && d.equal(c.vars) {
			c.vars = d // thousands of clients share one
		}
		p.lastVars = c.vars
	}
	b := append(p.e.l.compose[:0], before...)
	for _, r := range p.report {
		value := r.Value
		if v, ok := c.vars.get(r.Name); ok {
			value = v
		}
		b = appendParameter(b, r.Name, value)
	}
	b = append(b, c.login...)
	b = append(b, 'Z', 0, 0, 0, 5, 'I')
	c.login, c.own = nil, nil
	c.send(b)
}

// send gives bytes to the client.
func (c *client) send(b []byte) {
	if c.fd < 0 {
		return
	}
	c.to += int64(len(b))
	c.l.pass.toClients += int64(len(b))
	var err error
	if c.tls != nil {
		_, err = c.tls.Write(b)
	} else {
		err = c.write(b)
	}
	if err != nil {
		c.gone()
		return
	}
	if c.to >= meterEvery {
		c.report()
	}
}

func (c *client) report() {
	if m := c.l.pools.opt.Meter; m != nil && c.from+c.to > 0 {
		m.Transferred(c.pool.e.id, c.from, c.to)
	}
	c.from, c.to = 0, 0
}

func (c *client) writable() {
	if err := c.flush(); err != nil {
		c.gone()
		return
	}
	if c.blocked() {
		return
	}
	if c.state == stateClosing {
		c.closeWrite()
		return
	}
	if s := c.srv; s != nil {
		s.listen(true)
	}
	c.resume()
}

// hungUp is called while the client is not read: it waits, or does not take what it gets.
func (c *client) hungUp() {
	if c.state == stateClosing {
		c.hangUp()
		return
	}
	c.gone()
}

// paused tells whether the client's input has to wait.
func (c *client) paused() bool {
	return c.state != stateIdle || c.held || c.blocked() || c.srv != nil && c.srv.blocked()
}

// resume goes on with the client's input.
func (c *client) resume() {
	if c.busy {
		c.again = true
		return
	}
	if c.fd < 0 || c.paused() {
		return
	}
	if len(c.in) > 0 {
		c.feed(nil)
		if c.fd < 0 || c.paused() {
			return
		}
	}
	c.listen(true)
	if c.tls != nil {
		c.pump() // the TLS library may hold something that the kernel does not report again
	}
}

func (c *client) readable() {
	c.drained = false
	switch {
	case c.state == stateClosing:
		c.discard()
	case c.paused():
		c.listen(false)
	default:
		c.pump()
	}
}

// pump reads what there is.
func (c *client) pump() {
	l := c.l
	for c.fd >= 0 && !c.paused() {
		var n int
		var err error
		if c.tls != nil {
			n, err = c.tls.Read(l.scratch)
		} else {
			n, err = c.read(l.scratch)
		}
		if n > 0 {
			c.from += int64(n)
			l.pass.fromClients += int64(n)
			if c.from >= meterEvery {
				c.report()
			}
			c.feed(l.scratch[:n])
		}
		if err != nil {
			if _, again := err.(errAgain); !again && c.fd >= 0 { //nolint:errorlint // our own, which the TLS library passes on
				c.gone()
			}
			return
		}
	}
}

// discard reads what a client sends that was told to go: a socket closed with unread data resets the connection, and the reset
// can overtake our words.
func (c *client) discard() {
	for {
		if _, err := c.read(c.l.scratch); err != nil {
			if _, again := err.(errAgain); !again { //nolint:errorlint // our own
				c.hangUp()
			}
			return
		}
	}
}

// feed deals with what came, and keeps what has to wait.
func (c *client) feed(b []byte) {
	kept := len(c.in) > 0
	if kept {
		c.in = append(c.in, b...)
		b = c.in
	}
	c.busy = true
	for again := true; again; {
		c.again = false
		n := c.process(b)
		if c.fd < 0 || c.state == stateClosing {
			c.in = nil
			break
		}
		rest := b[n:]
		switch {
		case len(rest) > 0:
			c.in = append(c.in[:0], rest...) // moves it to the front when it was kept
		case cap(c.in) > keptInput:
			c.in = nil
		default:
			c.in = c.in[:0]
		}
		b = c.in
		again = c.again && !c.paused()
	}
	c.busy = false
}

// wait queues the client for a session.
func (c *client) wait() {
	c.state, c.since = stateWaiting, c.l.now
	c.pool.waiting.add(c)
	c.pool.changed()
}

// obtain gives the client a session, or queues it.
func (c *client) obtain() bool {
	p := c.pool
	if p.waiting.first == nil {
		if s := p.take(); s != nil {
			c.attach(s)
			return c.srv != nil
		}
	}
	c.wait()
	return false
}

// serve gives a session to a client that has waited.
func (c *client) serve(s *server) {
	c.state = stateIdle
	if c.login != nil {
		c.begin(s)
		return
	}
	c.attach(s)
	c.resume()
}

func (c *client) attach(s *server) {
	c.srv, s.client = s, c
	c.ownUnnamed, c.began, c.asked = false, false, false
	s.since, s.heard = c.l.now, false
	switch {
	case c.vars == s.vars:
	case c.vars.equal(s.vars):
		c.vars = s.vars
	default:
		if q := s.vars.adjust(nil, c.vars); len(q) > 0 {
			s.ask(string(q), func(s *server, err []byte) {
				if err != nil {
					c.end(&Refusal{Raw: err})
				}
			})
		}
	}
}

// begin ends the login of a client with the help of a session, which judges its startup parameters.
func (c *client) begin(s *server) {
	c.state = stateStarting
	c.srv, s.client, s.since = s, c, c.l.now
	want := c.pool.defaults
	for _, o := range c.own {
		want = want.with(s.vars.canonicalName(o.Name), o.Value)
	}
	done := func(s *server, err []byte) {
		if err != nil {
			c.end(&Refusal{Raw: err})
			return
		}
		c.state = stateIdle
		c.vars = s.vars
		c.welcome(nil)
	}
	if q := s.vars.adjust(nil, want); len(q) > 0 {
		s.ask(string(q), done)
		return
	}
	done(s, nil)
	s.settle()
}

// detached is called when the client's transaction is over.
func (c *client) detached(s *server) {
	c.srv, c.held, c.vars = nil, false, s.vars
	if !c.paused() {
		c.resume()
	}
}

// drop parts the client from its session in whatever state that is.
func (c *client) drop() {
	s := c.srv
	if s == nil {
		return
	}
	c.srv, s.client = nil, nil
	switch {
	case s.owes.n > 0 || c.batch || c.raw > 0 || s.skipping || s.rest > 0 || len(s.held) > 0:
		if s.owes.n > 0 && s.cancel != nil { // what it does is of no use to anybody
			pools, cancel := c.l.pools, s.cancel
			pools.work.Go(func() {
				ctx, stop := context.WithTimeout(pools.base, cancelTimeout)
				defer stop()
				cancel(ctx)
			})
		}
		s.quit()
	case s.status != 'I':
		s.listen(true)
		s.ask("ROLLBACK", nil)
	default:
		s.free()
	}
}

// interrupt is a cancel request of the client. It returns the session that a signal is to be sent to.
func (c *client) interrupt() *server {
	switch {
	case c.fd < 0 || c.state == stateClosing:
	case c.srv != nil && c.srv.owes.n > 0:
		return c.srv
	case c.state == stateWaiting && c.login == nil:
		c.pool.waiting.remove(c)
		c.denied(&Refusal{Code: "57014", Message: "canceling statement due to user request"})
	}
	return nil
}

// end tells the client why it is disconnected.
func (c *client) end(r *Refusal) {
	if c.fd < 0 || c.state == stateClosing {
		return
	}
	c.leave()
	c.send(r.append(nil, "FATAL"))
	if c.fd < 0 {
		return
	}
	c.state, c.since, c.in = stateClosing, c.l.now, nil
	c.l.closing = append(c.l.closing, c)
	c.l.at(c.l.now.Add(lingerTime / 4))
	c.listen(true)
	if !c.blocked() {
		c.closeWrite()
	}
}

func (c *client) closeWrite() {
	if c.tls != nil {
		_ = c.tls.CloseWrite()
	}
	_ = unix.Shutdown(c.fd, unix.SHUT_WR)
}

// leave takes the client out of the queue, or its transaction.
func (c *client) leave() {
	if c.state == stateWaiting {
		c.pool.waiting.remove(c)
	}
	c.state = stateIdle
	c.held = true // nothing more is read for a transaction
	c.in = nil
	c.drop()
}

// gone deals with a client that has closed.
func (c *client) gone() {
	if c.fd < 0 {
		return
	}
	if c.state != stateClosing {
		c.leave()
	}
	c.hangUp()
}

// hangUp closes the connection.
func (c *client) hangUp() {
	if c.fd < 0 {
		return
	}
	c.shut()
	if s := c.srv; s != nil {
		c.srv, s.client = nil, nil
		s.quit()
	}
	if c.state == stateWaiting {
		c.pool.waiting.remove(c)
		c.state = stateIdle
	}
	c.report()
	c.forgetStatements()
	p := c.pool
	p.clients--
	p.e.clients--
	p.tidy()
	c.in, c.tls = nil, nil
	c.closed()
}
