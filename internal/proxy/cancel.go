package proxy

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"io"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// cancelKey is what a client is given as process id and secret key. It is ours: the compute's key would not tell which
// compute it belongs to, and may be of another length.
type cancelKey [8]byte

func newCancelKey() (k cancelKey) {
	_, _ = rand.Read(k[:]) // never fails
	k[0] &= 0x7f           // drivers read the process id as a signed number
	return k
}

func (k cancelKey) message() *pgproto3.BackendKeyData {
	return &pgproto3.BackendKeyData{ProcessID: binary.BigEndian.Uint32(k[:4]), SecretKey: k[4:]}
}

func parseCancelKey(body []byte) (k cancelKey, err error) {
	if len(body) != len(k) {
		return k, errGone // not a key of ours: closed in silence, as every unknown one
	}
	return cancelKey(body), nil
}

// forwardCancel passes a cancel request on to the compute and returns when that has taken it: the client learns from the
// closing of its connection that the signal was sent.
func (s *Server) forwardCancel(ctx context.Context, key cancelKey) {
	s.mu.Lock()
	sess := s.keys[key]
	s.mu.Unlock()
	if sess == nil {
		return
	}
	sess.mu.Lock()
	path, backend := sess.socketPath, sess.backendKey
	sess.mu.Unlock()
	if backend == nil {
		return // no compute yet, so no query
	}
	ctx, cancel := context.WithTimeout(ctx, s.opt.HandshakeTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		s.log.Debug("cancel request: the compute does not answer", "endpoint", sess.endpointID, "error", err)
		return
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	msg, err := (&pgproto3.CancelRequest{ProcessID: backend.ProcessID, SecretKey: backend.SecretKey}).Encode(nil)
	if err != nil {
		return
	}
	if _, err := conn.Write(msg); err != nil {
		return
	}
	s.stats.cancels.Add(1)
	_, _ = io.Copy(io.Discard, conn)
}
