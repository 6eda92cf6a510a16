package pool

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	scratchSize = 64 << 10 // what one read takes at most, in bytes
	batch       = 128      // events taken from the kernel at once
)

// handler is what owns a socket in a loop.
type handler interface {
	readable()
	writable()
	// hungUp is called when the peer has closed and nobody reads the socket.
	hungUp()
}

// loop serves the sockets of some endpoints, and owns everything that belongs to these endpoints: only its goroutine touches
// them, so nothing of the path of a message needs a lock. Thousands of idle clients cost it nothing: they have no goroutine
// and no buffer.
type loop struct {
	pools *Pools
	epfd  int
	wake  int // an eventfd: there is mail

	mu     sync.Mutex
	mail   []func()
	closed bool

	socks     []*sock // by file descriptor
	gen       int32
	endpoints map[string]*endpoint
	dirty     []*pool   // pools with something to hand out
	closing   []*client // those that read our last words
	now       time.Time // of this round
	nextTick  time.Time

	scratch []byte // what was read last
	compose []byte // what is written next, when it is not a piece of scratch
	pass    stats
}

// stats are counts of one round, added to the shared ones at its end.
type stats struct{ fromClients, toClients int64 }

func newLoop(p *Pools) (*loop, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = unix.Close(epfd)
		return nil, err
	}
	l := &loop{
		pools: p, epfd: epfd, wake: wake, endpoints: map[string]*endpoint{},
		scratch: make([]byte, scratchSize), compose: make([]byte, 0, scratchSize),
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(wake)}
	if err := unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, wake, &ev); err != nil {
		_ = unix.Close(epfd)
		_ = unix.Close(wake)
		return nil, err
	}
	return l, nil
}

// post runs fn in the loop. It returns false when the loop has ended.
func (l *loop) post(fn func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.mail = append(l.mail, fn)
	if len(l.mail) == 1 {
		_, _ = unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // never full: it is read with the mail
	}
	return true
}

// run serves until ctx ends and nobody is left, or the time to say goodbye is over.
func (l *loop) run(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { l.post(l.shutDown) })
	defer stop()
	events := make([]unix.EpollEvent, batch)
	var ended time.Time
	for {
		n, err := unix.EpollWait(l.epfd, events, l.timeout())
		if err != nil && err != unix.EINTR {
			l.pools.opt.Log.Error("the pool's event loop failed", "error", err)
			break
		}
		l.now = time.Now()
		mail := false
		for _, ev := range events[:max(n, 0)] {
			if int(ev.Fd) == l.wake {
				mail = true
				continue
			}
			l.deliver(ev)
			l.handOut()
		}
		if mail {
			l.readMail()
			l.handOut()
		}
		if !l.nextTick.IsZero() && !l.now.Before(l.nextTick) {
			l.tick()
			l.handOut()
		}
		l.pools.count(&l.pass)
		if ctx.Err() != nil {
			if ended.IsZero() {
				ended = l.now
			}
			if l.idle() || l.now.Sub(ended) > 2*lingerTime {
				break
			}
		}
	}
	l.close()
}

func (l *loop) deliver(ev unix.EpollEvent) {
	s := l.socks[ev.Fd]
	if s == nil || s.gen != ev.Pad {
		return // closed by an event before this one
	}
	if ev.Events&unix.EPOLLOUT != 0 {
		s.owner.writable()
	}
	if s.fd < 0 {
		return
	}
	switch {
	case ev.Events&unix.EPOLLIN != 0 && s.events&unix.EPOLLIN != 0:
		s.owner.readable()
	case ev.Events&(unix.EPOLLHUP|unix.EPOLLERR|unix.EPOLLRDHUP) != 0:
		if s.events&unix.EPOLLIN != 0 {
			s.owner.readable() // finds the end of the stream
		} else {
			s.owner.hungUp()
		}
	}
}

func (l *loop) readMail() {
	var b [8]byte
	l.mu.Lock()
	_, _ = unix.Read(l.wake, b[:])
	mail := l.mail
	l.mail = nil
	l.mu.Unlock()
	for _, fn := range mail {
		fn()
	}
}

// timeout is how long the kernel may keep us, in milliseconds.
func (l *loop) timeout() int {
	if l.nextTick.IsZero() {
		return -1
	}
	d := l.nextTick.Sub(l.now)
	if d <= 0 {
		return 0
	}
	return int((d + time.Millisecond - 1) / time.Millisecond)
}

// at makes sure that tick is called by then.
func (l *loop) at(t time.Time) {
	if l.nextTick.IsZero() || t.Before(l.nextTick) {
		l.nextTick = t
	}
}

// tick does what depends on time.
func (l *loop) tick() {
	l.nextTick = time.Time{}
	for _, e := range l.endpoints {
		e.tick()
	}
	keep := l.closing[:0]
	for _, c := range l.closing {
		switch {
		case c.fd < 0:
		case l.now.After(c.since.Add(lingerTime)):
			c.hangUp()
		default:
			keep = append(keep, c)
		}
	}
	clear(l.closing[len(keep):])
	l.closing = keep
	if len(keep) > 0 {
		l.at(l.now.Add(lingerTime / 4))
	}
}

// idle tells whether nothing is left.
func (l *loop) idle() bool {
	for _, e := range l.endpoints {
		if e.clients > 0 || e.servers > 0 {
			return false
		}
	}
	return true
}

// shutDown says goodbye to everybody.
func (l *loop) shutDown() {
	for _, s := range l.socks {
		if s == nil {
			continue
		}
		if c, ok := s.owner.(*client); ok {
			c.end(shuttingDown())
		}
	}
	for _, e := range l.endpoints {
		for _, p := range e.pools {
			for len(p.idle) > 0 {
				p.idle[0].quit()
			}
		}
	}
	l.at(l.now.Add(lingerTime))
}

// close frees what is left.
func (l *loop) close() {
	l.mu.Lock()
	l.closed = true
	mail := l.mail
	l.mail = nil
	l.mu.Unlock()
	for _, fn := range mail {
		fn() // a client or a server that came too late is closed by what it finds
	}
	for _, s := range l.socks {
		if s == nil {
			continue
		}
		switch o := s.owner.(type) {
		case *client:
			o.hangUp()
		case *server:
			o.quit()
		}
	}
	l.pools.count(&l.pass)
	_ = unix.Close(l.epfd)
	_ = unix.Close(l.wake)
}
