package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/boughdb/bough/internal/core"
)

const (
	alpn         = "postgresql" // IANA's ALPN id; required when TLS comes without an SSLRequest
	tlsRecordTag = 0x16         // first byte of a TLS ClientHello
	lingerTime   = time.Second  // for the peer to read our last words
)

// tlsSide is what the TLS library sees as the connection: it takes the certificate that was shown back to us.
type tlsSide struct {
	net.Conn
	peeked []byte
	cert   *tls.Certificate
}

func (t *tlsSide) Read(b []byte) (int, error) {
	if len(t.peeked) > 0 {
		n := copy(b, t.peeked)
		t.peeked = t.peeked[n:]
		return n, nil
	}
	return t.Conn.Read(b)
}

func (s *Server) certificateFor(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	cert, err := s.opt.GetCertificate(hello)
	if side, ok := hello.Conn.(*tlsSide); ok {
		side.cert = cert
	}
	return cert, err
}

// clientConn is the client's connection: net is the top layer, TLS when there is one.
type clientConn struct {
	net    net.Conn
	raw    net.Conn
	tls    *tls.Conn // nil on a plain connection
	cert   *tls.Certificate
	remote netip.Addr
	side   *tlsSide // what tls is on top of

	adopted bool // by the pools, which close it
}

func newClientConn(raw net.Conn) *clientConn {
	c := &clientConn{net: raw, raw: raw}
	if a, ok := raw.RemoteAddr().(*net.TCPAddr); ok {
		c.remote = a.AddrPort().Addr().Unmap()
	}
	return c
}

func (c *clientConn) serverName() string {
	if c.tls == nil {
		return ""
	}
	return c.tls.ConnectionState().ServerName
}

// send writes messages in one piece.
func (c *clientConn) send(msgs ...pgproto3.BackendMessage) error {
	buf, err := encodeAll(msgs...)
	if err == nil {
		_, err = c.net.Write(buf)
	}
	return err
}

func encodeAll(msgs ...pgproto3.BackendMessage) (buf []byte, err error) {
	for _, m := range msgs {
		if buf, err = m.Encode(buf); err != nil {
			return nil, err
		}
	}
	return buf, nil
}

// closeWrite says goodbye and leaves the other direction open.
func (c *clientConn) closeWrite() {
	if c.tls != nil {
		_ = c.tls.CloseWrite()
	}
	if w, ok := c.raw.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite()
	}
}

// linger reads what the client still sends, for a moment: closing a socket with unread data resets it, and the reset can
// overtake our last message.
func (c *clientConn) linger() {
	c.closeWrite()
	_ = c.net.SetReadDeadline(time.Now().Add(lingerTime))
	_, _ = io.Copy(io.Discard, io.LimitReader(c.net, 1<<20))
}

func (c *clientConn) close() { _ = c.raw.Close() }

// handshake is what an authenticated client, or one with a cancel request, left us with.
type handshake struct {
	cancel *cancelKey // a cancel request: nothing else is set

	*startup
	target Target
	pooled bool
	final  []pgproto3.BackendMessage // to be sent when the session is registered, ends in AuthenticationOk
}

// asFatal picks the message for the client, nil when it is to get none.
func asFatal(err error) *fatal {
	if f, ok := errors.AsType[*fatal](err); ok {
		return f
	}
	return nil
}

// handshake takes a connection to the point where the client is authenticated. All of it has one deadline, so a client that
// sends a byte now and then gains nothing.
func (s *Server) handshake(base context.Context, c *clientConn) (*handshake, error) {
	ctx, cancel := context.WithTimeout(base, s.opt.HandshakeTimeout)
	defer cancel()
	_ = c.raw.SetDeadline(time.Now().Add(s.opt.HandshakeTimeout))
	stop := context.AfterFunc(base, func() { _ = c.raw.SetDeadline(time.Now()) })
	defer stop()

	hs, err := s.negotiate(ctx, c)
	switch {
	case err == nil, asFatal(err) != nil:
		return hs, err
	case base.Err() != nil:
		return nil, fatalf(codeAdminShutdown, textServerStopping)
	case errors.Is(err, errTLS), errors.Is(err, errGone):
		return nil, err
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return nil, fatalf(codeQueryCanceled, textHandshakeTimeoutFmt, s.opt.HandshakeTimeout)
	}
	return nil, fmt.Errorf("%w: %w", errGone, err)
}

// errTLS marks a failed TLS handshake: the client has got an alert and would not understand anything else.
var errTLS = errors.New("TLS handshake failed")

func (s *Server) negotiate(ctx context.Context, c *clientConn) (*handshake, error) {
	p, err := s.openStream(ctx, c)
	if err != nil {
		return nil, err
	}
	if p.code == codeCancelRequest {
		key, err := parseCancelKey(p.body)
		return &handshake{cancel: &key}, err
	}
	st, err := parseStartup(p)
	if err != nil {
		return nil, err
	}
	if c.tls == nil && (!s.opt.AllowPlaintext || !c.remote.IsLoopback()) {
		return nil, fatalf(codeInvalidAuth, textInsecure)
	}
	if st.negotiate {
		// The field holds the whole version, as in PostgreSQL, not the minor number alone.
		msg := &pgproto3.NegotiateProtocolVersion{NewestMinorProtocol: protocol30, UnrecognizedOptions: st.unrecognized}
		if err := c.send(msg); err != nil {
			return nil, err
		}
	}
	r, err := findRoute(c.serverName(), s.opt.Domain, st.opts.endpoint)
	if err != nil {
		return nil, err
	}
	hs := &handshake{startup: st}
	if r.endpointID == "" {
		err = s.authCleartext(ctx, c, hs)
	} else {
		hs.pooled = r.pooled
		if err := st.checkReplication(r.pooled); err != nil {
			return nil, err
		}
		err = s.authSCRAM(ctx, c, hs, r.endpointID)
	}
	if err != nil {
		return nil, err
	}
	hs.final = append(hs.final, &pgproto3.AuthenticationOk{})
	return hs, nil
}

// openStream answers the requests for encryption and returns the packet that follows them.
func (s *Server) openStream(ctx context.Context, c *clientConn) (startupPacket, error) {
	var first [1]byte
	if _, err := io.ReadFull(c.net, first[:]); err != nil {
		return startupPacket{}, err
	}
	peeked := first[:]
	if first[0] == tlsRecordTag && s.tls != nil {
		if err := s.startTLS(ctx, c, first[:]); err != nil {
			return startupPacket{}, err
		}
		if c.tls.ConnectionState().NegotiatedProtocol != alpn {
			return startupPacket{}, fatalf(codeProtocolViolation,
				"direct TLS connections must negotiate the ALPN protocol %q", alpn)
		}
		peeked = nil
	}
	askedSSL, askedGSS := false, false
	for {
		p, err := readStartup(c.net, peeked)
		if err != nil {
			return p, err
		}
		peeked = nil
		switch {
		case p.code == codeSSLRequest && len(p.body) == 0 && !askedSSL && c.tls == nil:
			askedSSL = true
			if s.tls == nil {
				if _, err := c.net.Write([]byte{'N'}); err != nil {
					return p, err
				}
				continue
			}
			// Reads are exact, so nothing that was sent in the clear behind the request can pass for encrypted.
			if _, err := c.net.Write([]byte{'S'}); err != nil {
				return p, err
			}
			if err := s.startTLS(ctx, c, nil); err != nil {
				return p, err
			}
		case p.code == codeGSSENCRequest && len(p.body) == 0 && !askedGSS:
			askedGSS = true
			if _, err := c.net.Write([]byte{'N'}); err != nil {
				return p, err
			}
		case p.code == codeSSLRequest, p.code == codeGSSENCRequest:
			return p, fatalf(codeProtocolViolation, "encryption was asked for twice")
		default:
			return p, nil
		}
	}
}

func (s *Server) startTLS(ctx context.Context, c *clientConn, peeked []byte) error {
	side := &tlsSide{Conn: c.raw, peeked: peeked}
	conn := tls.Server(side, s.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		s.log.Debug("TLS handshake failed", "client", c.remote, "error", err)
		return fmt.Errorf("%w: %w", errTLS, err)
	}
	c.net, c.tls, c.cert, c.side = conn, conn, side.cert, side
	return nil
}

// admit finds the endpoint and applies what does not depend on the role.
func (s *Server) admit(ctx context.Context, c *clientConn, id string) (Target, error) {
	t, err := s.dir.Resolve(ctx, id)
	if err != nil {
		if ctx.Err() != nil {
			return t, ctx.Err()
		}
		return t, directoryError(err, "find", id)
	}
	if err := refuseAddress(t.Access, c.remote); err != nil {
		return t, err
	}
	if t.Disabled {
		f := fatalf(codeWrongState, "endpoint %q is disabled", id)
		f.hint = "Enable it with an update of the endpoint, then connect again."
		return t, f
	}
	return t, nil
}

// credential returns the role's verifier. While the compute runs its catalog is asked first, not only after a failure: SCRAM
// fixes the salt before the proof is seen, so an exchange that began with an outdated copy cannot be saved, and an outdated
// copy would go on accepting a password that was changed in SQL. A catalog that cannot be read falls back to the copy.
func (s *Server) credential(ctx context.Context, t Target, id, role string) (credential, error) {
	const catalogTimeout = 3 * time.Second
	var (
		verifier string
		found    bool
		err      error
	)
	read := false
	if t.Running {
		fctx, cancel := context.WithTimeout(ctx, catalogTimeout)
		verifier, found, err = s.dir.Verifier(fctx, id, role, true)
		cancel()
		if read = err == nil; !read {
			s.log.Debug("the catalog's verifier could not be read, using the stored one", "endpoint", id, "error", err)
		}
	}
	if !read {
		verifier, found, err = s.dir.Verifier(ctx, id, role, false)
	}
	switch {
	case ctx.Err() != nil:
		return credential{}, ctx.Err()
	case core.IsKind(err, core.KindNotFound):
		found = false
	case err != nil:
		return credential{}, directoryError(err, "find", id)
	}
	mock := mockCredential(s.opt.MockSecret, id, role)
	if !found {
		return mock, nil
	}
	cred, err := parseVerifier(verifier)
	if err != nil {
		s.log.Warn("a role has a password that is not SCRAM-SHA-256", "endpoint", id, "role", role)
		return mock, nil //nolint:nilerr // the client sees what a wrong password gives
	}
	return cred, nil
}

// authSCRAM runs SASL (PostgreSQL documentation, "SASL Authentication").
func (s *Server) authSCRAM(ctx context.Context, c *clientConn, hs *handshake, id string) error {
	var err error
	if hs.target, err = s.admit(ctx, c, id); err != nil {
		return err
	}
	ex := scramExchange{}
	if ex.cred, err = s.credential(ctx, hs.target, id, hs.role); err != nil {
		return err
	}
	if c.tls != nil && c.cert != nil && c.cert.Leaf != nil {
		ex.binding = serverEndPoint(c.cert.Leaf)
	}
	if err := c.send(&pgproto3.AuthenticationSASL{AuthMechanisms: ex.mechanisms()}); err != nil {
		return err
	}
	body, err := readMessage(c.net, maxSASLLen)
	if err != nil {
		return err
	}
	var initial pgproto3.SASLInitialResponse
	if err := initial.Decode(body); err != nil {
		return fatalf(codeProtocolViolation, "malformed SASL message")
	}
	reply, err := ex.first(initial.AuthMechanism, string(initial.Data))
	if err != nil {
		return err
	}
	if err := c.send(&pgproto3.AuthenticationSASLContinue{Data: []byte(reply)}); err != nil {
		return err
	}
	if body, err = readMessage(c.net, maxSASLLen); err != nil {
		return err
	}
	reply, ok, cause := ex.final(string(body))
	if !ok {
		return s.authFailed(hs.role, cause)
	}
	hs.final = append(hs.final, &pgproto3.AuthenticationSASLFinal{Data: []byte(reply)})
	return nil
}

// authCleartext serves clients that cannot name the endpoint elsewhere: endpoint=<id>;<password>, inside TLS only.
func (s *Server) authCleartext(ctx context.Context, c *clientConn, hs *handshake) error {
	missing := fatalf(codeInvalidAuth, "the connection does not say which endpoint it is for")
	missing.hint = hintPassEndpoint
	if c.tls == nil {
		return missing
	}
	if err := c.send(&pgproto3.AuthenticationCleartextPassword{}); err != nil {
		return err
	}
	body, err := readMessage(c.net, maxPasswordLen)
	if err != nil {
		return err
	}
	var msg pgproto3.PasswordMessage
	if err := msg.Decode(body); err != nil {
		return fatalf(codeProtocolViolation, "malformed password message")
	}
	name, password, err := cutPasswordForm(msg.Password)
	if err != nil {
		return missing
	}
	r, err := parseRoute(name)
	if err != nil {
		return missing // the text must not show what may be a part of a password
	}
	hs.pooled = r.pooled
	if err := hs.checkReplication(r.pooled); err != nil {
		return err
	}
	if hs.target, err = s.admit(ctx, c, r.endpointID); err != nil {
		return err
	}
	cred, err := s.credential(ctx, hs.target, r.endpointID, hs.role)
	if err != nil {
		return err
	}
	if !cred.matches(password) {
		return s.authFailed(hs.role, nil)
	}
	return nil
}

func (s *Server) authFailed(role string, cause error) error {
	s.stats.authFailures.Add(1)
	f := badPassword(role)
	f.cause = cause
	return f
}
