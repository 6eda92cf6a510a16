package pool

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

const (
	maxWhole   = 64 << 10 // bytes of a message that is looked at as a whole
	maxMessage = 1 << 30  // PostgreSQL's limit, in bytes
)

// frontend is a message of a client, whole or its beginning.
type frontend struct {
	kind byte
	size int
	b    []byte // what there is of it, with its header
}

func (m *frontend) whole() bool  { return len(m.b) == m.size }
func (m *frontend) body() []byte { return m.b[5:] }

// process deals with the messages in b and returns how many bytes of it are done with. The rest waits for a session, or for the
// end of a message.
func (c *client) process(b []byte) (done int) {
	out := output{l: c.l}
	total := len(b)
	for len(b) > 0 {
		if c.raw > 0 {
			n := min(c.raw, len(b))
			if !c.rawDrop {
				out.piece(b[:n])
			}
			c.raw -= n
			b = b[n:]
			continue
		}
		if len(b) < 5 {
			break
		}
		m := frontend{kind: b[0], size: int(binary.BigEndian.Uint32(b[1:5])) + 1}
		if m.size < 5 || m.size > maxMessage {
			c.violation("invalid message length")
			return total
		}
		m.b = b[:min(m.size, len(b))]
		verdict := c.local(&m)
		if verdict == vServer {
			switch {
			case c.srv != nil:
			case !m.whole() && m.size <= maxWhole:
				verdict = vMore // nobody holds a session with half a message
			case !c.obtain():
				verdict = vHold
			}
			if verdict == vServer {
				verdict = c.forward(&m, &out)
			}
		}
		if c.fd < 0 || c.state == stateClosing {
			return total
		}
		switch verdict {
		case vHold, vMore:
			c.flushTo(&out)
			return total - len(b)
		case vDone, vDrop:
			c.raw, c.rawDrop = m.size-len(m.b), verdict == vDrop
			b = b[len(m.b):]
		}
	}
	c.flushTo(&out)
	return total - len(b)
}

// flushTo sends what was collected to the session.
func (c *client) flushTo(out *output) {
	b := out.bytes()
	if len(b) == 0 || c.srv == nil {
		return
	}
	if c.srv.write(b) != nil {
		c.srv.lost()
		return
	}
	if c.srv.blocked() {
		c.listen(false)
	}
}

type verdict uint8

const (
	vServer verdict = iota // it is for a session
	vDone                  // dealt with; what is to come of the message goes the same way
	vDrop                  // dealt with; what is to come of it goes nowhere
	vHold                  // it has to wait
	vMore                  // more of it is needed
)

// local deals with what needs no session.
func (c *client) local(m *frontend) verdict {
	switch m.kind {
	case 'X':
		c.gone()
		return vDone
	case 'Q', 'P', 'B', 'D', 'E', 'C', 'S', 'H', 'F', 'd', 'c', 'f':
	default:
		c.violation(fmt.Sprintf("invalid frontend message type %d", m.kind))
		return vDrop
	}
	if c.skip {
		if m.kind == 'S' {
			c.skip, c.batch = false, false
			c.sendReady()
		}
		return vDrop
	}
	if c.aborted {
		return c.inAborted(m)
	}
	if c.srv != nil {
		if s := c.srv; c.asked && !c.batch && s.owes.n > 0 && s.status == 'I' && !c.began && c.pool.waiting.first != nil &&
			m.kind != 'd' && m.kind != 'c' && m.kind != 'f' {
			c.held = true // first come first served, also when somebody pipelines
			return vHold
		}
		return c.deallocates(m)
	}
	switch m.kind {
	case 'S':
		c.batch = false
		c.sendReady()
		return vDone
	case 'H', 'd', 'c', 'f': // of a COPY that has failed, for instance
		return vDrop
	case 'C':
		if v := c.wants(m); v != vDone {
			return v
		}
		if body := m.body(); len(body) > 1 && body[0] == 'S' {
			c.define(string(body[1:len(body)-1]), nil)
		}
		c.batch = true
		c.send([]byte{'3', 0, 0, 0, 4})
		return vDone
	}
	return c.deallocates(m)
}

// wants asks for the whole of a message.
func (c *client) wants(m *frontend) verdict {
	switch {
	case m.whole():
		return vDone
	case m.size > maxWhole:
		c.violation("message too long")
		return vDrop
	}
	return vMore
}

// deallocates answers a DEALLOCATE of a statement that was prepared by the protocol: in the sessions it has another name.
func (c *client) deallocates(m *frontend) verdict {
	if m.kind != 'Q' || len(c.stmts) == 0 || c.batch || m.size > maxWhole {
		return vServer
	}
	if len(m.b) > 5 && m.b[5]|0x20 > 'd' || verbOf(m.body()) != verbDeallocate { // the first test is cheap
		return vServer
	}
	if !m.whole() {
		return vMore
	}
	s := c.srv
	if s != nil && (s.owes.n > 0 || s.status == 'E') {
		return vServer
	}
	query, _, _ := cutString(m.body())
	name, ok := deallocated(query)
	if !ok || c.stmts[name] == nil {
		return vServer
	}
	c.define(name, nil)
	c.send(appendComplete(nil, "DEALLOCATE"))
	c.sendReady()
	return vDone
}

// forward passes a message to the session.
func (c *client) forward(m *frontend, out *output) verdict {
	s := c.srv
	c.asked = true
	if s.skipping && m.kind != 'S' {
		return vDrop // the session would not look at it either
	}
	switch m.kind {
	case 'Q':
		if m.size <= maxWhole && !m.whole() {
			return vMore
		}
		query := m.body()
		v := verbOf(query)
		s.effects |= effectOf(query)
		c.began = c.began || v == verbBegin
		c.unnamed, c.ownUnnamed = c.unnamed[:0], true // a simple query ends the unnamed statement
		s.owes.push(expect{kind: exQuery, verb: v})
	case 'F':
		s.owes.push(expect{kind: exQuery})
	case 'S':
		c.batch, s.skipping = false, false
		if !s.copying {
			s.owes.push(expect{kind: exSync})
		}
	case 'H':
		c.batch = true
		fakes := output{l: c.l}
		if k := s.owes.head(); k == exParseFake || k == exCloseFake {
			c.flushTo(out) // both use the loop's buffer
			*out = output{l: c.l}
			s.fakes(&fakes)
			c.send(fakes.bytes())
		}
	case 'd':
	case 'c', 'f':
		if s.copying {
			s.copying = false
		} else if s.owes.n > 0 {
			s.owes.push(expect{kind: exCopyEnd})
		}
	case 'E':
		c.batch = true
		s.owes.push(expect{kind: exExecute, verb: c.boundVerb})
	case 'P':
		c.batch = true
		return c.parse(m, out)
	case 'B':
		c.batch = true
		return c.bind(m, out)
	case 'D', 'C':
		c.batch = true
		return c.describeOrClose(m, out)
	}
	out.piece(m.b)
	return vDone
}

func (c *client) parse(m *frontend, out *output) verdict {
	s := c.srv
	if len(m.b) < 6 {
		return vMore
	}
	if m.b[5] == 0 {
		if m.size <= maxWhole && !m.whole() {
			return vMore
		}
		key := m.b[6:]
		c.unnamed = c.unnamed[:0]
		if m.whole() && len(key) <= maxUnnamedKept {
			c.unnamed = append(c.unnamed, key...)
		}
		c.ownUnnamed = true
		c.unnamedVerb = verbOf(key)
		c.began = c.began || c.unnamedVerb == verbBegin
		s.effects |= effectOf(key)
		if c.unnamedVerb == verbDeallocate && m.whole() && c.parseDeallocate(key, out) {
			return vDone
		}
		s.owes.push(expect{kind: exParse})
		out.piece(m.b)
		return vDone
	}
	if m.size > maxParse {
		c.end(&Refusal{Code: "54000", Message: fmt.Sprintf("a prepared statement must not be longer than %d bytes", maxParse)})
		return vDrop
	}
	if !m.whole() {
		return vMore
	}
	nameBytes, key, ok := cutString(m.body())
	if !ok {
		c.violation("invalid message format")
		return vDrop
	}
	if old := c.stmts[string(nameBytes)]; old != nil {
		// The server is to refuse it, in its place: it is asked to make a statement that it has.
		s.prepare(out, old)
		s.owes.push(expect{kind: exRefuse, name: string(nameBytes)})
		buf := out.buffer()
		*buf = appendParse(*buf, old.name, key)
		return vDone
	}
	if len(c.stmts) >= maxStatements {
		c.end(&Refusal{Code: "54000", Message: fmt.Sprintf("a client must not have more than %d prepared statements", maxStatements)})
		return vDrop
	}
	st := c.pool.intern(key)
	name := string(nameBytes)
	c.define(name, st)
	if s.has.has(st) {
		s.owes.push(expect{kind: exParseFake, st: st, name: name})
		return vDone
	}
	s.send(out, st, expect{kind: exParse, st: st, name: name})
	return vDone
}

// parseDeallocate passes on the Parse of a DEALLOCATE, with the name that the statement has in the session. Whether it is executed
// is not known yet, so the session closes the statement before it prepares it again.
func (c *client) parseDeallocate(key []byte, out *output) bool {
	query, types, ok := cutString(key)
	if !ok || c.srv.status == 'E' {
		return false
	}
	name, ok := deallocated(query)
	st := c.stmts[name]
	if !ok || st == nil {
		return false
	}
	s := c.srv
	s.prepare(out, st)
	s.has.remove(st.name)
	s.has.add(st.name, outdated)
	tail := append([]byte("DEALLOCATE "+st.name+"\x00"), types...)
	c.define(name, nil)
	s.owes.push(expect{kind: exParse})
	buf := out.buffer()
	*buf = appendParse(*buf, "", tail)
	return true
}

// prepare makes sure that the session has a statement.
func (s *server) prepare(out *output, st *stmt) {
	if !s.has.has(st) {
		s.send(out, st, expect{kind: exParseOwn, st: st})
	}
}

// send prepares a statement in the session, after making room for it.
func (s *server) send(out *output, st *stmt, e expect) {
	old, full := s.has.oldest()
	if s.has.knows(st.name) {
		old, full = st.name, true // an outdated form of it
	}
	buf := out.buffer()
	if full {
		s.has.remove(old)
		s.owes.push(expect{kind: exCloseOwn, name: old})
		*buf = appendClose(*buf, old)
	}
	s.has.add(st.name, st.gen)
	s.owes.push(e)
	*buf = appendParse(*buf, st.name, []byte(st.key))
}

func (c *client) bind(m *frontend, out *output) verdict {
	s := c.srv
	portal, rest, ok := cutString(m.body())
	var name []byte
	if ok {
		name, rest, ok = cutString(rest)
	}
	if !ok {
		if m.whole() || len(m.b) > maxWhole {
			c.violation("invalid message format")
			return vDrop
		}
		return vMore
	}
	if len(name) == 0 {
		if !c.ownUnnamed && len(c.unnamed) > 0 {
			buf := out.buffer()
			*buf = appendParse(*buf, "", c.unnamed)
			s.owes.push(expect{kind: exParseOwn})
			c.ownUnnamed = true
		}
		c.boundVerb = c.unnamedVerb
		s.owes.push(expect{kind: exBind})
		out.piece(m.b)
		return vDone
	}
	st := c.stmts[string(name)]
	if st == nil {
		c.boundVerb = verbOther
		s.owes.push(expect{kind: exBind})
		if bytes.HasPrefix(name, []byte(ownPrefix)) {
			c.violation("invalid statement name") // not a name that anybody gave
			return vDrop
		}
		out.piece(m.b)
		return vDone
	}
	s.prepare(out, st)
	c.boundVerb = st.verb
	c.began = c.began || st.verb == verbBegin
	s.effects |= st.effect
	s.owes.push(expect{kind: exBind, st: st})
	buf := out.buffer()
	*buf = append(*buf, 'B')
	*buf = binary.BigEndian.AppendUint32(*buf, uint32(m.size-1-len(name)+len(st.name)))
	*buf = append(*buf, portal...)
	*buf = append(*buf, 0)
	*buf = append(*buf, st.name...)
	*buf = append(*buf, 0)
	*buf = append(*buf, rest...)
	return vDone
}

func (c *client) describeOrClose(m *frontend, out *output) verdict {
	s := c.srv
	if v := c.wants(m); v != vDone {
		return v
	}
	body := m.body()
	if len(body) < 2 || body[len(body)-1] != 0 {
		c.violation("invalid message format")
		return vDrop
	}
	name := body[1 : len(body)-1]
	var st *stmt
	if body[0] == 'S' {
		st = c.stmts[string(name)]
		if st == nil && bytes.HasPrefix(name, []byte(ownPrefix)) {
			c.violation("invalid statement name")
			return vDrop
		}
	}
	if m.kind == 'C' {
		switch {
		case st != nil:
			c.define(string(name), nil)
			s.owes.push(expect{kind: exCloseFake, st: st, name: string(name)})
			return vDone
		case body[0] == 'S' && len(name) == 0:
			c.unnamed, c.ownUnnamed = c.unnamed[:0], true
		}
		s.owes.push(expect{kind: exClose})
		out.piece(m.b)
		return vDone
	}
	if st != nil {
		s.prepare(out, st)
		s.owes.push(expect{kind: exDescribe, st: st})
		buf := out.buffer()
		*buf = append(*buf, 'D')
		*buf = binary.BigEndian.AppendUint32(*buf, uint32(6+len(st.name)))
		*buf = append(*buf, 'S')
		*buf = append(*buf, st.name...)
		*buf = append(*buf, 0)
		return vDone
	}
	if body[0] == 'S' && len(name) == 0 && !c.ownUnnamed && len(c.unnamed) > 0 {
		buf := out.buffer()
		*buf = appendParse(*buf, "", c.unnamed)
		s.owes.push(expect{kind: exParseOwn})
		c.ownUnnamed = true
	}
	s.owes.push(expect{kind: exDescribe})
	out.piece(m.b)
	return vDone
}

func (c *client) violation(what string) {
	c.end(&Refusal{Code: "08P01", Message: what})
}
