package pool

import (
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sock is a non-blocking socket in a loop.
type sock struct {
	l      *loop
	fd     int // -1 when closed
	gen    int32
	events uint32 // what the kernel is asked to report
	owner  handler

	out     []byte // what the kernel did not take yet
	drained bool   // the last read took all that there was
}

// errAgain says that there is nothing to read now. It is a temporary net.Error, which the TLS library takes as no reason to
// give the connection up.
type errAgain struct{}

func (errAgain) Error() string   { return "nothing to read" }
func (errAgain) Timeout() bool   { return true }
func (errAgain) Temporary() bool { return true }

// takeOver duplicates the descriptor of a connection and closes the connection, which takes it away from the runtime's poller:
// in both pollers, each packet would wake two threads.
func takeOver(conn net.Conn) (fd int, err error) {
	defer func() { _ = conn.Close() }()
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return -1, errors.ErrUnsupported
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd = -1
	var dupErr error
	if err := raw.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return -1, err
	}
	return fd, dupErr // non-blocking, as its original: that is a property of the socket
}

func (l *loop) add(s *sock, fd int, owner handler) error {
	l.gen++
	*s = sock{l: l, fd: fd, gen: l.gen, owner: owner, events: unix.EPOLLIN | unix.EPOLLRDHUP}
	ev := unix.EpollEvent{Events: s.events, Fd: int32(fd), Pad: s.gen}
	if err := unix.EpollCtl(l.epfd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		_ = unix.Close(fd)
		s.fd = -1
		return err
	}
	for fd >= len(l.socks) {
		l.socks = append(l.socks, make([]*sock, max(64, len(l.socks)))...)
	}
	l.socks[fd] = s
	return nil
}

// want sets which events are reported.
func (s *sock) want(events uint32) {
	if s.fd < 0 || events == s.events {
		return
	}
	s.events = events
	ev := unix.EpollEvent{Events: events, Fd: int32(s.fd), Pad: s.gen}
	_ = unix.EpollCtl(s.l.epfd, unix.EPOLL_CTL_MOD, s.fd, &ev) // fails for a descriptor that is not ours only
}

// listen turns the reporting of input on and off.
func (s *sock) listen(on bool) {
	if on {
		s.want(s.events | unix.EPOLLIN)
	} else {
		s.want(s.events &^ unix.EPOLLIN)
	}
}

func (s *sock) shut() {
	if s.fd < 0 {
		return
	}
	s.l.socks[s.fd] = nil
	_ = unix.Close(s.fd) // takes it out of the poller, too: there is no other descriptor of it
	s.fd = -1
	s.out = nil
}

// read takes what there is. errAgain: nothing; io.EOF: the peer has closed.
func (s *sock) read(b []byte) (int, error) {
	if s.drained {
		return 0, errAgain{}
	}
	for {
		n, err := unix.Read(s.fd, b)
		switch {
		case n > 0:
			s.drained = n < len(b) // the poller reports again what comes from now on
			return n, nil
		case err == nil:
			return 0, io.EOF
		case err == unix.EAGAIN:
			s.drained = true
			return 0, errAgain{}
		case err != unix.EINTR:
			return 0, err
		}
	}
}

// write gives bytes to the kernel and keeps what it does not take; blocked tells whether there is such a rest.
func (s *sock) write(b []byte) error {
	if len(s.out) > 0 {
		s.out = append(s.out, b...)
		return nil
	}
	n, err := s.push(b)
	if err != nil {
		return err
	}
	if n < len(b) {
		s.out = append(s.out, b[n:]...)
		s.want(s.events | unix.EPOLLOUT)
	}
	return nil
}

func (s *sock) push(b []byte) (done int, err error) {
	for done < len(b) {
		n, err := unix.SendmsgN(s.fd, b[done:], nil, nil, unix.MSG_NOSIGNAL)
		switch {
		case n > 0:
			done += n
		case err == unix.EAGAIN:
			return done, nil
		case err == unix.EINTR:
		case err != nil:
			return done, err
		}
	}
	return done, nil
}

// blocked tells whether the peer does not keep up.
func (s *sock) blocked() bool { return len(s.out) > 0 }

// flush goes on with what the kernel did not take before.
func (s *sock) flush() error {
	n, err := s.push(s.out)
	if err != nil {
		return err
	}
	if n == len(s.out) {
		s.out = nil
		s.want(s.events &^ unix.EPOLLOUT)
		return nil
	}
	s.out = append(s.out[:0], s.out[n:]...)
	return nil
}

// netConn lets the TLS library use a socket of the loop.
type netConn struct{ s *sock }

func (c netConn) Read(b []byte) (int, error) { return c.s.read(b) }

func (c netConn) Write(b []byte) (int, error) {
	if c.s.fd < 0 {
		return 0, net.ErrClosed
	}
	return len(b), c.s.write(b)
}
func (c netConn) Close() error                     { return nil }
func (c netConn) LocalAddr() net.Addr              { return nil }
func (c netConn) RemoteAddr() net.Addr             { return nil }
func (c netConn) SetDeadline(time.Time) error      { return nil }
func (c netConn) SetReadDeadline(time.Time) error  { return nil }
func (c netConn) SetWriteDeadline(time.Time) error { return nil }
