package pool

import (
	"bytes"
	"context"
	"encoding/binary"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// maxHeld bounds a message of a server that is looked at as a whole, in bytes.
const maxHeld = 64 << 20

// server is a session in a compute.
type server struct {
	sock
	pool   *pool
	client *client // nil: idle
	cancel func(context.Context)

	status   byte // of the last ReadyForQuery: I, T or E
	since    time.Time
	owes     expects
	skipping bool // it reads on to the next Sync, after an error
	copying  bool // it takes COPY data of the extended protocol, whose end has not been sent
	effects  effect
	cancels  int  // requests that are under way
	leaving  bool // it has said that it goes, or will be closed after its transaction
	vars     *vars
	has      prepared

	held  []byte // the beginning of a message that is looked at as a whole
	rest  int    // bytes of the present message that are still to come, and go to the client
	heard bool   // something came since the client got the session
	fatal []byte // its last words
}

func closeFD(fd int) { _ = unix.Close(fd) }

func (s *server) writable() {
	if s.flush() != nil {
		s.lost()
		return
	}
	if c := s.client; c != nil && !s.blocked() {
		c.resume()
	}
}

func (s *server) hungUp() { s.readable() }

func (s *server) readable() {
	l := s.l
	s.drained = false
	n, err := s.read(l.scratch)
	if n > 0 {
		b := l.scratch[:n]
		if len(s.held) > 0 {
			s.held = append(s.held, b...)
			b = s.held
		}
		if !s.take(b) {
			return
		}
	}
	if err == nil {
		return
	}
	if _, again := err.(errAgain); !again { //nolint:errorlint // our own read
		s.lost()
	}
}

// output collects what goes to one side: mostly one piece of what came from the other, which is not copied then.
type output struct {
	l     *loop
	src   []byte // the piece
	mixed bool   // compose holds what came before src
}

func (o *output) piece(b []byte) {
	switch {
	case len(b) == 0:
	case len(o.src) > 0 && cap(o.src) > len(o.src) && &o.src[:len(o.src)+1][len(o.src)] == &b[0]:
		o.src = o.src[:len(o.src)+len(b)]
	case len(o.src) == 0 && !o.mixed:
		o.src = b
	default:
		o.settle()
		o.src = b
	}
}

func (o *output) settle() {
	if !o.mixed {
		o.l.compose = o.l.compose[:0]
		o.mixed = true
	}
	o.l.compose = append(o.l.compose, o.src...)
	o.src = nil
}

// buffer is where to append something else.
func (o *output) buffer() *[]byte {
	o.settle()
	return &o.l.compose
}

func (o *output) bytes() []byte {
	if !o.mixed {
		return o.src
	}
	o.settle()
	return o.l.compose
}

// take looks at what came from the server and passes it on. It returns false when the server is gone.
func (s *server) take(b []byte) bool {
	out := output{l: s.l}
	whole := b
	for len(b) > 0 {
		if s.rest > 0 {
			n := min(s.rest, len(b))
			s.pass(&out, b[:n])
			s.rest -= n
			b = b[n:]
			continue
		}
		if len(b) < 5 {
			break
		}
		size := int(binary.BigEndian.Uint32(b[1:5])) + 1
		if size < 5 || b[0] == 'Z' && size != 6 {
			s.lost()
			return false
		}
		switch b[0] {
		case 'Z', 'C', 'E', 'S', 'N', 'A', '1', '2', '3', 'n', 's', 'I', 'G', 'K':
			if len(b) < size {
				if size > maxHeld {
					s.lost()
					return false
				}
				s.hold(b, whole)
				return s.deliver(&out)
			}
			if !s.message(&out, b[0], b[:size]) {
				return s.fd >= 0
			}
			b = b[size:]
		default: // rows and their description, data of a COPY
			s.heard = true
			s.fakes(&out)
			if (b[0] == 'T') && s.owes.head() == exDescribe {
				s.owes.pop()
			}
			s.rest = size
		}
	}
	s.hold(b, whole)
	return s.deliver(&out)
}

func (s *server) hold(b, whole []byte) {
	switch {
	case len(b) == 0:
		s.held = nil
	case len(s.held) > 0 && len(b) == len(whole):
		// whole is what is held
	default:
		s.held = append([]byte(nil), b...)
	}
}

// pass gives a piece of what came to the client, unless the answer is to something of ours.
func (s *server) pass(out *output, b []byte) {
	if s.client != nil && s.owes.head() != exQueryOwn {
		out.piece(b)
	}
}

// deliver sends what was collected. The session may change hands after it.
func (s *server) deliver(out *output) bool {
	if c := s.client; c != nil {
		if b := out.bytes(); len(b) > 0 {
			c.send(b)
			if s.fd < 0 {
				return false // the client was gone, and took the session with it
			}
			if s.client == c && c.blocked() {
				s.listen(false)
			}
		}
	}
	s.settle()
	return s.fd >= 0
}

// fakes answers what is answered without the server and comes next.
func (s *server) fakes(out *output) {
	for s.owes.n > 0 {
		switch s.owes.head() {
		case exParseFake:
			buf := out.buffer()
			*buf = append(*buf, '1', 0, 0, 0, 4)
		case exCloseFake:
			buf := out.buffer()
			*buf = append(*buf, '3', 0, 0, 0, 4)
		case exCopyEnd:
		default:
			return
		}
		s.owes.pop()
	}
}

// message deals with one whole message. It returns false when the server was lost by it.
func (s *server) message(out *output, kind byte, msg []byte) bool {
	body := msg[5:]
	switch kind {
	case 'S':
		if name, rest, ok := cutString(body); ok {
			if value, _, ok := cutString(rest); ok {
				s.vars = s.vars.with(string(name), string(value))
			}
		}
		s.pass(out, msg)
		return true
	case 'N', 'A', 'K':
		if kind == 'N' || s.client != nil {
			s.pass(out, msg)
		}
		return true
	case 'E':
		return s.failed(out, msg)
	}
	s.heard = true
	s.fakes(out)
	head := s.owes.head()
	switch kind {
	case 'Z':
		s.ready(out, msg)
		return true
	case '1':
		if e := s.popIf(exParse, exParseOwn); e.kind == exParseOwn {
			return true
		}
	case '2':
		s.popIf(exBind, exBind)
	case '3':
		if e := s.popIf(exClose, exCloseOwn); e.kind == exCloseOwn {
			return true
		}
	case 'n':
		s.popIf(exDescribe, exDescribe)
	case 's', 'I':
		s.popIf(exExecute, exExecute)
	case 'G':
		if head == exExecute {
			s.copying = !s.owes.dropSyncs()
		}
	case 'C':
		if s.owes.n > 0 && head != exQueryOwn {
			s.tag(bytes.TrimRight(body, "\x00"), s.owes.at(0).verb)
		}
		s.popIf(exExecute, exExecute)
	}
	s.pass(out, msg)
	return true
}

func (s *server) popIf(a, b expectKind) expect {
	if s.owes.n > 0 && (s.owes.head() == a || s.owes.head() == b) {
		return s.owes.pop()
	}
	return expect{}
}

// tag looks at what a command did.
func (s *server) tag(tag []byte, v verb) {
	e := effectOfTag(tag)
	if e == effectSet && v == verbSetLocal {
		return
	}
	s.effects |= e
	if len(tag) < len(tagDiscardAll) || tag[0] != 'D' {
		return
	}
	switch string(tag) {
	case tagDiscardAll:
		s.effects = 0
		s.has.clear()
		if s.client != nil {
			s.client.forgetStatements()
		}
	case tagDeallocateAll:
		s.effects &^= effectPrepare
		s.has.clear()
		if s.client != nil {
			s.client.forgetStatements()
		}
	}
}

// ready deals with ReadyForQuery.
func (s *server) ready(out *output, msg []byte) {
	s.status = msg[5]
	s.copying = false
	var e expect
	for s.owes.n > 0 && e.kind < exSync {
		e = s.owes.pop()
	}
	if e.kind == exQueryOwn {
		if e.own != nil {
			e.own(s, nil)
		}
		return
	}
	if s.client != nil {
		if s.owes.n == 0 && s.status == 'I' {
			s.warn(out)
		}
		out.piece(msg)
		s.client.began = false
		s.fakes(out)
	}
}

// warn tells a client, once, that something of its transaction does not last.
func (s *server) warn(out *output) {
	if s.effects == 0 {
		return
	}
	c := s.client
	for _, w := range warnings {
		if s.effects&w.effect != 0 && c.warned&w.effect == 0 {
			c.warned |= w.effect
			buf := out.buffer()
			*buf = appendNotice(*buf, w.text, warningHint)
		}
	}
}

// failed deals with an error.
func (s *server) failed(out *output, msg []byte) bool {
	severity, code := errorFields(msg[5:])
	if severity == "FATAL" || severity == "PANIC" {
		if s.client == nil {
			s.quit()
			return false
		}
		s.leaving = true
		s.fatal = append([]byte(nil), msg...)
		return true // the end of the stream comes next
	}
	s.heard = true
	s.fakes(out)
	switch head := s.owes.head(); {
	case s.owes.n == 0 || head == exQuery || head == exSync:
	case head == exQueryOwn:
		e := s.owes.at(0)
		if own := e.own; own != nil {
			e.own = nil
			own(s, msg)
		}
		return s.fd >= 0
	default:
		n, found := s.owes.toSync()
		if code == "0A000" && bytes.Contains(msg, []byte("RevalidateCachedQuery")) {
			if st := s.owes.at(0).st; st != nil {
				st.gen++ // every session prepares it anew
			}
		}
		if head == exRefuse {
			msg = (&Refusal{Code: "42P05", Message: "prepared statement \"" + s.owes.at(0).name + "\" already exists"}).append(nil, "ERROR")
		}
		s.undo(n)
		s.skipping, s.copying = !found, false
	}
	s.pass(out, msg)
	return true
}

// undo takes back what the next n messages did to what we know: the server skips them.
func (s *server) undo(n int) {
	for i := n - 1; i >= 0; i-- {
		e := s.owes.at(i)
		switch e.kind {
		case exParse, exParseOwn:
			if e.st != nil {
				s.has.remove(e.st.name)
			}
		case exCloseOwn:
			s.has.remove(e.name)
			s.has.add(e.name, outdated)
			continue
		}
		if s.client == nil || e.name == "" {
			continue
		}
		switch e.kind {
		case exParse, exParseFake:
			s.client.define(e.name, e.prev)
		case exClose, exCloseFake:
			s.client.define(e.name, e.st)
		}
	}
	for range n {
		s.owes.pop()
	}
}

// settle gives the session back when the client's transaction is over and nothing is under way.
func (s *server) settle() {
	c := s.client
	if s.fd < 0 || s.owes.n > 0 || s.status != 'I' || s.rest > 0 || len(s.held) > 0 {
		return
	}
	if c != nil {
		if c.batch || c.raw > 0 || s.skipping {
			return
		}
		s.client = nil
		p := s.pool
		held := s.l.now.Sub(s.since)
		p.hold += (held - p.hold) / 16
		p.lastRelease = s.l.now
		s.free()
		c.detached(s)
		return
	}
	if !slices.Contains(s.pool.idle, s) { // what it was cleaned by is over
		s.free()
	}
}

// free gives a session without a client to the next one, once nothing of the last one is left.
func (s *server) free() {
	s.listen(true)
	switch {
	case s.cancels > 0:
		return // a signal is under way: it must not hit the next one
	case s.leaving || s.effects&effectLoad != 0 || s.pool.e.l.pools.base.Err() != nil:
		s.quit()
		return
	case s.effects != 0:
		s.clean()
		return
	}
	s.since = s.l.now
	if s.pool.cedes() {
		s.quit()
		return
	}
	s.pool.idle = append(s.pool.idle, s)
	s.pool.changed()
}

// clean undoes what the last client left behind.
func (s *server) clean() {
	sql := s.l.compose[:0]
	for _, c := range cleanups {
		if s.effects&c.effect != 0 {
			sql = append(sql, c.sql...)
		}
	}
	if s.effects&effectPrepare != 0 {
		s.has.clear()
	}
	s.effects = 0
	s.ask(string(sql), func(s *server, err []byte) {
		if err != nil {
			s.pool.e.l.pools.opt.Log.Warn("a pooled session could not be cleaned, closing it", "endpoint", s.pool.e.id)
			s.leaving = true
		}
	})
}

// ask runs a query of ours. own gets the error of it, or nil.
func (s *server) ask(sql string, own func(s *server, err []byte)) {
	msg := make([]byte, 0, len(sql)+6)
	msg = append(msg, 'Q')
	msg = binary.BigEndian.AppendUint32(msg, uint32(len(sql)+5))
	msg = append(append(msg, sql...), 0)
	s.owes.push(expect{kind: exQueryOwn, own: own})
	if s.write(msg) != nil {
		s.lost()
	}
}

// lost deals with the end of the stream.
func (s *server) lost() {
	if s.fd < 0 {
		return
	}
	c := s.client
	s.client = nil
	s.quit()
	if c != nil {
		c.lostServer(s)
	}
}

// ended tells whether an idle session has something to say, which can only be goodbye, or has closed.
func (s *server) ended() bool {
	var b [1]byte
	n, _, err := unix.Recvfrom(s.fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return err == nil && (n == 0 || b[0] == 'E') || err != nil && err != unix.EAGAIN && err != unix.EINTR
}

// quit closes the session. A client that has it must have been detached.
func (s *server) quit() {
	if s.fd < 0 {
		return
	}
	if s.owes.n == 0 && s.rest == 0 && s.client == nil && s.fatal == nil {
		_, _ = s.push([]byte{'X', 0, 0, 0, 4})
	}
	s.shut()
	p := s.pool
	if i := slices.Index(p.idle, s); i >= 0 {
		p.idle = slices.Delete(p.idle, i, i+1)
	}
	p.live--
	p.forget()
	p.changed()
	p.tidy()
}

// errorFields returns the severity and the code of an ErrorResponse's body.
func errorFields(body []byte) (severity, code string) {
	for len(body) > 1 {
		kind := body[0]
		value, rest, ok := cutString(body[1:])
		if !ok {
			break
		}
		switch kind {
		case 'V': // not translated
			severity = string(value)
		case 'S':
			if severity == "" {
				severity = string(value)
			}
		case 'C':
			code = string(value)
		}
		body = rest
	}
	return severity, code
}
