package proxy

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/boughdb/bough/internal/proxy/pool"
)

// maxCompanion bounds what a compute says before its first ReadyForQuery, in bytes.
const maxCompanion = 1 << 20

// refusedError holds the compute's own ErrorResponse, which the client gets as it is.
type refusedError struct {
	code    string
	message []byte // with what came before it
	last    []byte // the ErrorResponse alone
}

func (e *refusedError) Error() string { return "the compute refused the session with " + e.code }

// connect wakes the compute and opens the session in it. first is what the client gets next: parameters, our cancel key,
// ReadyForQuery.
func (sess *session) connect(ctx context.Context, hs *handshake) (first []byte, err error) {
	up, err := sess.srv.openSession(ctx, sess.endpointID, hs.params, sess.key)
	if err != nil {
		return nil, err
	}
	sess.mu.Lock()
	sess.up = up
	sess.mu.Unlock()
	sess.backend = up.conn
	close(sess.ready)
	return up.out, nil
}

// backendSession is an open session in a compute.
type backendSession struct {
	startupExchange
	conn *net.UnixConn
	path string
}

// openSession wakes the compute and opens a session. A compute that was suspended, or crashed, between waking and connecting is
// woken again, a few times; the client has seen nothing of it by then.
func (s *Server) openSession(ctx context.Context, endpointID string, params map[string]string, key cancelKey) (*backendSession, error) {
	const attempts = 8
	ctx, cancel := context.WithTimeout(ctx, s.opt.ConnectTimeout)
	defer cancel()
	hello, err := (&pgproto3.StartupMessage{ProtocolVersion: protocol30, Parameters: params}).Encode(nil)
	if err != nil {
		return nil, err
	}
	tooSlow := func(cause error) error {
		f := fatalf(codeCannotConnectNow, "the compute of endpoint %q did not accept the connection within %s; try again",
			endpointID, s.opt.ConnectTimeout)
		f.cause = cause
		return f
	}
	pause := 20 * time.Millisecond
	for attempt := 1; ; attempt++ {
		path, err := s.dir.Wake(ctx, endpointID)
		if err != nil {
			if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
				return nil, tooSlow(err)
			}
			return nil, directoryError(err, "start", endpointID)
		}
		up := &backendSession{path: path, startupExchange: startupExchange{ownKey: key}}
		if err = up.open(ctx, hello); err == nil {
			return up, nil
		}
		if ctx.Err() != nil {
			return nil, tooSlow(err)
		}
		if !errors.Is(err, errTryAgain) || attempt == attempts {
			return nil, err
		}
		s.log.Debug("the compute went away before the session was open, waking again",
			"endpoint", endpointID, "attempt", attempt, "error", err)
		select {
		case <-ctx.Done():
			return nil, tooSlow(ctx.Err())
		case <-time.After(pause):
		}
		pause = min(2*pause, time.Second)
	}
}

// errTryAgain marks a failure that another Wake may cure.
var errTryAgain = errors.New("compute not reachable")

// open dials the compute and does the startup exchange. The socket's folder is private to the compute's user, and its rules
// trust whoever can reach it: the client has been authenticated here.
func (up *backendSession) open(ctx context.Context, hello []byte) (err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", up.path)
	if err != nil {
		return fmt.Errorf("%w: %w", errTryAgain, err)
	}
	up.conn = conn.(*net.UnixConn)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer func() {
		if !stop() && err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			_ = conn.Close()
		}
	}()
	if _, err := conn.Write(hello); err != nil {
		return fmt.Errorf("%w: %w", errTryAgain, err)
	}
	return up.exchange()
}

// exchange reads until the session is ready.
func (up *backendSession) exchange() error {
	up.ready = false
	buf := buffers.Get().(*[relayBuffer]byte)
	defer buffers.Put(buf)
	for !up.ready {
		n, err := up.conn.Read(buf[:])
		if n > 0 {
			if err := up.feed(buf[:n]); err != nil {
				if r, ok := errors.AsType[*refusedError](err); ok && retryable(r.code) {
					return fmt.Errorf("%w: %w", errTryAgain, err)
				}
				return err
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errTryAgain, err)
		}
	}
	return nil
}

// interrupt sends a cancel request and returns when the compute has taken it: the signal was sent then. It tells whether it got
// that far.
func (up *backendSession) interrupt(ctx context.Context) bool {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", up.path)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	msg, err := (&pgproto3.CancelRequest{ProcessID: up.backendKey.ProcessID, SecretKey: up.backendKey.SecretKey}).Encode(nil)
	if err != nil {
		return false
	}
	if _, err := conn.Write(msg); err != nil {
		return false
	}
	_, _ = io.Copy(io.Discard, conn)
	return true
}

// retryable tells whether a refusal means that the compute is going down or coming up.
func retryable(code string) bool {
	return code == codeCannotConnectNow || code == codeAdminShutdown || code == codeCrashShutdown
}

// startupExchange reads what a compute says between our StartupMessage and its first ReadyForQuery.
type startupExchange struct {
	ownKey     cancelKey
	backendKey *pgproto3.BackendKeyData
	params     []pool.Param
	out        []byte // for the client
	pending    []byte // the beginning of a message
	ready      bool
}

// feed takes the next bytes. When ready is set, what followed ReadyForQuery is in out too.
func (e *startupExchange) feed(b []byte) error {
	e.pending = append(e.pending, b...)
	for !e.ready {
		if len(e.pending) < 5 {
			return nil
		}
		size := int64(binary.BigEndian.Uint32(e.pending[1:5])) + 1
		if size < 5 || size > maxCompanion || len(e.out) > maxCompanion {
			return errors.New("the compute broke the protocol during startup")
		}
		if int64(len(e.pending)) < size {
			return nil
		}
		msg := e.pending[:size]
		if err := e.message(msg[0], msg); err != nil {
			return err
		}
		e.pending = e.pending[size:]
	}
	e.out = append(e.out, e.pending...)
	e.pending = nil
	return nil
}

func (e *startupExchange) message(kind byte, msg []byte) error {
	body := msg[5:]
	switch kind {
	case 'R':
		if len(body) != 4 || binary.BigEndian.Uint32(body) != 0 {
			return errors.New("the compute asks for a password: its access rules are not ours")
		}
		return nil // the client has got its AuthenticationOk
	case 'v':
		return nil
	case 'E':
		var r pgproto3.ErrorResponse
		if err := r.Decode(body); err != nil {
			return err
		}
		return &refusedError{code: r.Code, message: append(e.out, msg...), last: bytes.Clone(msg)}
	case 'K':
		e.backendKey = new(pgproto3.BackendKeyData)
		if err := e.backendKey.Decode(body); err != nil {
			return err
		}
		var err error
		e.out, err = e.ownKey.message().Encode(e.out)
		return err
	case 'S':
		if name, rest, err := cutString(body); err == nil {
			if value, _, err := cutString(rest); err == nil {
				e.params = append(e.params, pool.Param{Name: name, Value: value})
			}
		}
	case 'Z':
		e.ready = true
	}
	e.out = append(e.out, msg...)
	return nil
}
