package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// maxCompanion bounds what a compute says before its first ReadyForQuery, in bytes.
const maxCompanion = 1 << 20

// refusedError holds the compute's own ErrorResponse, which the client gets as it is.
type refusedError struct {
	code    string
	message []byte
}

func (e *refusedError) Error() string { return "the compute refused the session with " + e.code }

// connect wakes the compute and opens the session in it. first is what the client gets next: parameters, our cancel key,
// ReadyForQuery. A compute that was suspended, or crashed, between waking and connecting is woken again, a few times; the
// client has seen nothing of it by then.
func (sess *session) connect(ctx context.Context, hs *handshake) (first []byte, err error) {
	const attempts = 8
	s := sess.srv
	ctx, cancel := context.WithTimeout(ctx, s.opt.ConnectTimeout)
	defer cancel()
	hello, err := (&pgproto3.StartupMessage{ProtocolVersion: protocol30, Parameters: hs.params}).Encode(nil)
	if err != nil {
		return nil, err
	}
	pause := 20 * time.Millisecond
	for attempt := 1; ; attempt++ {
		path, err := s.dir.Wake(ctx, sess.endpointID)
		if err != nil {
			if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
				return nil, sess.tooSlow(err)
			}
			return nil, directoryError(err, "start", sess.endpointID)
		}
		first, err = sess.open(ctx, path, hello)
		if err == nil {
			return first, nil
		}
		if ctx.Err() != nil {
			return nil, sess.tooSlow(err)
		}
		if !errors.Is(err, errTryAgain) || attempt == attempts {
			return nil, err
		}
		s.log.Debug("the compute went away before the session was open, waking again",
			"endpoint", sess.endpointID, "attempt", attempt, "error", err)
		select {
		case <-ctx.Done():
			return nil, sess.tooSlow(ctx.Err())
		case <-time.After(pause):
		}
		pause = min(2*pause, time.Second)
	}
}

func (sess *session) tooSlow(cause error) error {
	f := fatalf(codeCannotConnectNow, "the compute of endpoint %q did not accept the connection within %s; try again",
		sess.endpointID, sess.srv.opt.ConnectTimeout)
	f.cause = cause
	return f
}

// errTryAgain marks a failure that another Wake may cure.
var errTryAgain = errors.New("compute not reachable")

// open dials the compute and does the startup exchange. The socket's folder is private to the compute's user, and its rules
// trust whoever can reach it: the client has been authenticated here.
func (sess *session) open(ctx context.Context, path string, hello []byte) (first []byte, err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errTryAgain, err)
	}
	backend := conn.(*net.UnixConn)
	stop := context.AfterFunc(ctx, func() { _ = backend.Close() })
	defer func() {
		if !stop() && err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			_ = backend.Close()
		}
	}()
	if _, err := backend.Write(hello); err != nil {
		return nil, fmt.Errorf("%w: %w", errTryAgain, err)
	}
	ex := startupExchange{ownKey: sess.key}
	buf := buffers.Get().(*[relayBuffer]byte)
	defer buffers.Put(buf)
	for !ex.ready {
		n, err := backend.Read(buf[:])
		if n > 0 {
			if err := ex.feed(buf[:n]); err != nil {
				if r, ok := errors.AsType[*refusedError](err); ok && retryable(r.code) {
					return nil, fmt.Errorf("%w: %w", errTryAgain, err)
				}
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errTryAgain, err)
		}
	}
	sess.mu.Lock()
	sess.socketPath, sess.backendKey = path, ex.backendKey
	sess.mu.Unlock()
	sess.backend = backend
	close(sess.up)
	return ex.out, nil
}

// retryable tells whether a refusal means that the compute is going down or coming up.
func retryable(code string) bool {
	return code == codeCannotConnectNow || code == codeAdminShutdown || code == codeCrashShutdown
}

// startupExchange reads what a compute says between our StartupMessage and its first ReadyForQuery.
type startupExchange struct {
	ownKey     cancelKey
	backendKey *pgproto3.BackendKeyData
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
		return &refusedError{code: r.Code, message: append(e.out, msg...)}
	case 'K':
		e.backendKey = new(pgproto3.BackendKeyData)
		if err := e.backendKey.Decode(body); err != nil {
			return err
		}
		var err error
		e.out, err = e.ownKey.message().Encode(e.out)
		return err
	case 'Z':
		e.ready = true
	}
	e.out = append(e.out, msg...)
	return nil
}
