package proxy

import (
	"context"
	"crypto/rand"
	"encoding/binary"

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

// member is an authenticated client, as the registry sees it.
type member interface {
	// cancelQuery interrupts what the client waits for. It returns when the signal was sent, and tells whether it was.
	cancelQuery(ctx context.Context) bool
	// end disconnects the client.
	end()
}

// forwardCancel passes a cancel request on and returns when the compute has taken it: the client learns from the closing of its
// connection that the signal was sent.
func (s *Server) forwardCancel(ctx context.Context, key cancelKey) {
	s.mu.Lock()
	m := s.keys[key]
	s.mu.Unlock()
	if m == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.opt.HandshakeTimeout)
	defer cancel()
	if m.cancelQuery(ctx) {
		s.stats.cancels.Add(1)
	}
}

func (sess *session) cancelQuery(ctx context.Context) bool {
	sess.mu.Lock()
	up := sess.up
	sess.mu.Unlock()
	return up != nil && up.interrupt(ctx) // without a compute there is no query
}

func (sess *session) end() { sess.cancel(errSessionCut) }
