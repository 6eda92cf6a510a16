package pool

import "time"

const cancelTimeout = 10 * time.Second

const (
	textLost    = "the connection to the compute was lost: it crashed, or was suspended or restarted"
	hintLost    = "What was not committed is rolled back; whether a commit under way succeeded is not known. The connection can go on."
	textAborted = "current transaction is aborted, commands ignored until end of transaction block"
	codeLost    = "08006"
	codeAborted = "25P02"
)

// lostServer tells the client what became of its transaction. The connection stays: but a transaction block that the client has
// begun must not go on as single statements, so it is in a failed one until it ends that.
func (c *client) lostServer(s *server) {
	c.srv, c.held = nil, false
	if c.fd < 0 || c.state == stateClosing {
		return
	}
	if c.state == stateStarting {
		c.state = stateIdle
		c.wait() // its login begins anew, with another session
		return
	}
	if s.rest > 0 { // in the middle of a message
		c.gone()
		return
	}
	if c.raw > 0 {
		c.rawDrop = true
	}
	msg := asError(s.fatal)
	if msg == nil {
		msg = (&Refusal{Code: codeLost, Message: textLost, Hint: hintLost}).append(nil, "ERROR")
	}
	c.aborted = s.status != 'I' || c.began
	var b []byte
	told := false
	open := c.batch // messages behind the last Sync
	for s.owes.n > 0 {
		e := s.owes.pop()
		switch e.kind {
		case exQueryOwn:
			continue
		case exSync, exQuery:
			if !told {
				b = append(b, msg...)
			}
			b = appendReady(b, c.status())
			told = false
		default:
			if !told {
				b = append(b, msg...)
			}
			told = true
		}
	}
	switch {
	case open && !s.skipping && !told:
		b = append(b, msg...)
		fallthrough
	case open:
		c.skip = true
	case len(b) == 0 && c.aborted:
		c.failure = msg
	}
	if len(b) > 0 {
		c.send(b)
	}
	c.resume()
}

// status is what ReadyForQuery says of the client's transaction.
func (c *client) status() byte {
	switch {
	case c.aborted:
		return 'E'
	case c.srv != nil:
		return c.srv.status
	}
	return 'I'
}

func (c *client) sendReady() { c.send(appendReady(nil, c.status())) }

// inAborted deals with messages in a transaction that was lost, as a server does in one that has failed.
func (c *client) inAborted(m *frontend) verdict {
	switch m.kind {
	case 'H', 'd', 'c', 'f':
		return vDrop
	case 'S':
		c.batch = false
		c.sendReady()
		return vDone
	case 'Q':
		if m.size <= maxWhole && !m.whole() {
			return vMore
		}
		c.send(c.endAborted(verbOf(m.body())))
		c.sendReady()
		return vDrop
	}
	c.batch = true
	if m.size <= maxWhole && !m.whole() {
		return vMore
	}
	var reply []byte
	switch m.kind {
	case 'P':
		if m.whole() {
			reply = c.parseAborted(m)
		}
	case 'B':
		if _, rest, ok := cutString(m.body()); ok {
			if name, _, ok := cutString(rest); ok {
				c.boundVerb = c.unnamedVerb
				if st := c.stmts[string(name)]; st != nil {
					c.boundVerb = st.verb
				}
				if c.boundVerb == verbCommit || c.boundVerb == verbRollback {
					reply = []byte{'2', 0, 0, 0, 4}
				}
			}
		}
	case 'D':
		if m.size > 5 && m.body()[0] == 'S' {
			reply = []byte{'t', 0, 0, 0, 6, 0, 0}
		}
		reply = append(reply, 'n', 0, 0, 0, 4)
	case 'E':
		if reply = c.endAborted(c.boundVerb); reply[0] == 'E' {
			c.send(reply)
			c.skip = true
			return vDrop
		}
	case 'C':
		if body := m.body(); len(body) > 1 && body[0] == 'S' {
			c.define(string(body[1:len(body)-1]), nil)
		}
		reply = []byte{'3', 0, 0, 0, 4}
	}
	if reply == nil {
		reply = c.abortedError()
		c.skip = true
	}
	c.send(reply)
	return vDrop
}

// parseAborted takes a Parse of what ends a transaction; nil: it is something else.
func (c *client) parseAborted(m *frontend) []byte {
	name, key, ok := cutString(m.body())
	if !ok {
		return nil
	}
	if v := verbOf(key); v != verbCommit && v != verbRollback {
		return nil
	}
	if len(name) == 0 {
		c.unnamed, c.unnamedVerb = append(c.unnamed[:0], key...), verbOf(key)
	} else if c.stmts[string(name)] == nil {
		c.define(string(name), c.pool.intern(key))
	}
	return []byte{'1', 0, 0, 0, 4}
}

// endAborted answers a command. A ROLLBACK ends the transaction. So does a COMMIT, but a client that does not know yet that the
// transaction is lost gets the error, not the tag ROLLBACK, which many drivers do not look at.
func (c *client) endAborted(v verb) []byte {
	if v == verbCommit && c.failure != nil {
		c.aborted = false
		return c.abortedError()
	}
	if v != verbCommit && v != verbRollback {
		return c.abortedError()
	}
	c.aborted, c.failure = false, nil
	return appendComplete(nil, "ROLLBACK")
}

// abortedError is the reason, the first time, then what a server says.
func (c *client) abortedError() []byte {
	if msg := c.failure; msg != nil {
		c.failure = nil
		return msg
	}
	return (&Refusal{Code: codeAborted, Message: textAborted}).append(nil, "ERROR")
}

// denied tells a client that has waited that there is no session for it. It stays connected.
func (c *client) denied(r *Refusal) {
	c.state = stateIdle
	if c.login != nil || r.Final {
		c.end(r)
		return
	}
	b := r.append(nil, "ERROR")
	if len(c.in) >= 5 && (c.in[0] == 'Q' || c.in[0] == 'F') {
		size := int(be32(c.in[1:5])) + 1
		n := min(size, len(c.in))
		c.in = append(c.in[:0], c.in[n:]...)
		c.raw, c.rawDrop = size-n, true
		b = appendReady(b, 'I')
	} else {
		c.skip = true
	}
	c.send(b)
	c.resume()
}
