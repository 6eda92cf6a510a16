package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	relayBuffer = 32 << 10 // each way
	meterEvery  = 1 << 20  // bytes between two calls of the Meter
)

// buffers are what the relays of all sessions read into: arrays, so that taking one costs no allocation.
var buffers = sync.Pool{New: func() any { return new([relayBuffer]byte) }}

// session is an authenticated client and, once it is awake, its compute.
type session struct {
	srv        *Server
	endpointID string
	key        cancelKey
	client     *clientConn
	cancel     context.CancelCauseFunc

	ready   chan struct{} // closed when backend is set
	backend *net.UnixConn // set once, before ready is closed

	mu sync.Mutex
	up *backendSession // nil until it is open

	unmetered struct{ fromClient, toClient atomic.Int64 }
}

// run serves an authenticated client to its end.
//
// The goroutine that reads from the client starts before the compute is awake. It is how we learn that a client gave up
// waiting, and it keeps what a client sent too early for the compute.
func (s *Server) run(base context.Context, c *clientConn, hs *handshake) {
	ctx, cancel := context.WithCancelCause(base)
	defer cancel(nil)
	id := hs.target.EndpointID
	sess := &session{srv: s, endpointID: id, client: c, cancel: cancel, ready: make(chan struct{})}
	sess.key = s.register(id, sess)
	s.stats.sessions.Add(1)
	if m := s.opt.Meter; m != nil {
		m.SessionOpened(id)
	}
	log := s.log.With("endpoint", id, "role", hs.role, "database", hs.database, "client", c.remote, "pooled", hs.pooled)
	log.Debug("session opened")
	began := time.Now()
	defer func() {
		s.unregister(id, sess.key, sess)
		s.stats.sessions.Add(-1)
		sess.report()
		if m := s.opt.Meter; m != nil {
			m.SessionClosed(id)
		}
		log.Debug("session closed", "duration", time.Since(began), "cause", context.Cause(ctx))
	}()

	if err := c.send(hs.final...); err != nil {
		return
	}
	_ = c.raw.SetDeadline(time.Time{})

	var reader sync.WaitGroup
	reader.Go(func() { sess.fromClient(ctx) })

	first, err := sess.connect(ctx, hs)
	// From here on the end of ctx ends both directions, whatever they wait for.
	stop := context.AfterFunc(ctx, func() {
		if sess.backend != nil {
			_ = sess.backend.Close()
		}
		_ = c.raw.SetDeadline(time.Now().Add(lingerTime))
	})
	defer stop()
	if err == nil {
		sess.toClient(first)
		_ = sess.backend.Close()
	} else {
		s.stats.failed.Add(1)
		sess.farewell(ctx, err)
	}
	// The reader now drops what the client sends, until it hangs up or the time is over; see linger.
	c.closeWrite()
	_ = c.raw.SetDeadline(time.Now().Add(lingerTime))
	if err != nil {
		cancel(err)
	}
	reader.Wait()
}

// farewell tells a client that waited for its compute why it gets none.
func (sess *session) farewell(ctx context.Context, err error) {
	s := sess.srv
	f := asFatal(err)
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errGone):
		return
	case errors.Is(cause, errSessionCut):
		f = fatalf(codeAdminShutdown, textSessionCut)
	case cause != nil:
		f = fatalf(codeAdminShutdown, textServerStopping)
	}
	_ = sess.client.raw.SetWriteDeadline(time.Now().Add(lingerTime))
	if refused, ok := errors.AsType[*refusedError](err); ok && f == nil {
		_, _ = sess.client.net.Write(refused.message)
		return
	}
	if f == nil {
		f = directoryError(err, "connect to", sess.endpointID)
	}
	if f.code == codeSystemError || f.code == codeCannotConnectNow {
		s.log.Error("a session got no compute", "endpoint", sess.endpointID, "code", f.code, "error", err)
	}
	_ = sess.client.send(f.response())
}

// fromClient moves bytes to the compute. After the compute is gone it goes on reading and drops what it reads.
func (sess *session) fromClient(ctx context.Context) {
	buf := buffers.Get().(*[relayBuffer]byte)
	defer buffers.Put(buf)
	up, drop := false, false
	for {
		n, err := sess.client.net.Read(buf[:])
		if n > 0 && !up && !drop {
			if n == 5 && buf[0] == 'X' {
				sess.cancel(errGone) // Terminate: it does not want the compute any more
			}
			select {
			case <-sess.ready:
				up = true
			case <-ctx.Done():
				drop = true
			}
		}
		if n > 0 && up && !drop {
			_, werr := sess.backend.Write(buf[:n])
			drop = werr != nil
			sess.count(int64(n), 0)
		}
		if err == nil {
			continue
		}
		select {
		case <-sess.ready:
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				// The compute sees the end of its input, as it would without us, and may still have something to say.
				_ = sess.backend.CloseWrite()
				return
			}
		default:
		}
		sess.cancel(errGone)
		return
	}
}

// toClient moves bytes to the client until the compute closes, or the client does not take them any more.
func (sess *session) toClient(first []byte) {
	if _, err := sess.client.net.Write(first); err != nil {
		sess.cancel(errGone)
		return
	}
	sess.count(0, int64(len(first)))
	buf := buffers.Get().(*[relayBuffer]byte)
	defer buffers.Put(buf)
	for {
		n, err := sess.backend.Read(buf[:])
		if n > 0 {
			if _, werr := sess.client.net.Write(buf[:n]); werr != nil {
				sess.cancel(errGone)
				return
			}
			sess.count(0, int64(n))
		}
		if err != nil {
			return
		}
	}
}

func (sess *session) count(fromClient, toClient int64) {
	s := sess.srv
	if fromClient > 0 {
		s.stats.fromClients.Add(fromClient)
	}
	if toClient > 0 {
		s.stats.toClients.Add(toClient)
	}
	from, to := sess.unmetered.fromClient.Add(fromClient), sess.unmetered.toClient.Add(toClient)
	if max(from, to) >= meterEvery {
		sess.report()
	}
}

// Report tells the Meter what open sessions have moved since it was told last.
func (s *Server) Report() {
	s.pools.Report()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, set := range s.sessions {
		for m := range set {
			if sess, ok := m.(*session); ok {
				sess.report()
			}
		}
	}
}

func (sess *session) report() {
	from, to := sess.unmetered.fromClient.Swap(0), sess.unmetered.toClient.Swap(0)
	if m := sess.srv.opt.Meter; m != nil && from+to > 0 {
		m.Transferred(sess.endpointID, from, to)
	}
}
