package proxy

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/xdg-go/scram"
	"github.com/xdg-go/stringprep"
)

// SASL mechanisms (RFC 7677, RFC 5802).
const (
	mechSCRAM     = "SCRAM-SHA-256"
	mechSCRAMPlus = "SCRAM-SHA-256-PLUS"
)

const (
	mockIterations = 4096      // PostgreSQL's default
	mockSaltLen    = 16        // the same
	maxIterations  = 1_000_000 // of a verifier that we run PBKDF2 for
)

// credential is a role's verifier, or a made-up one that no password matches.
type credential struct {
	scram.StoredCredentials
	mock bool
}

// parseVerifier reads pg_authid.rolpassword: SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>.
func parseVerifier(s string) (credential, error) {
	bad := errors.New("not a SCRAM-SHA-256 verifier")
	rest, ok := strings.CutPrefix(s, mechSCRAM+"$")
	if !ok {
		return credential{}, bad
	}
	head, keys, ok := strings.Cut(rest, "$")
	if !ok {
		return credential{}, bad
	}
	iter, salt, ok1 := strings.Cut(head, ":")
	stored, server, ok2 := strings.Cut(keys, ":")
	if !ok1 || !ok2 {
		return credential{}, bad
	}
	n, err := strconv.Atoi(iter)
	if err != nil || n < 1 {
		return credential{}, bad
	}
	var c credential
	c.Iters = n
	for _, f := range []struct {
		in  string
		out *[]byte
		len int
	}{{salt, nil, 0}, {stored, &c.StoredKey, sha256.Size}, {server, &c.ServerKey, sha256.Size}} {
		b, err := base64.StdEncoding.DecodeString(f.in)
		if err != nil || len(b) == 0 || (f.len > 0 && len(b) != f.len) {
			return credential{}, bad
		}
		if f.out == nil {
			c.Salt = string(b)
		} else {
			*f.out = b
		}
	}
	return c, nil
}

// mockCredential makes an exchange with an unknown role look like one with a wrong password. The salt of one name is
// always the same, as that of a real role is.
func mockCredential(secret []byte, endpointID, role string) credential {
	mac := hmac.New(sha256.New, secret)
	fmt.Fprintf(mac, "%s\x00%s", endpointID, role)
	keys := make([]byte, 2*sha256.Size)
	_, _ = rand.Read(keys) // never fails
	return credential{mock: true, StoredCredentials: scram.StoredCredentials{
		KeyFactors: scram.KeyFactors{Salt: string(mac.Sum(nil)[:mockSaltLen]), Iters: mockIterations},
		StoredKey:  keys[:sha256.Size], ServerKey: keys[sha256.Size:],
	}}
}

// serverEndPoint is the tls-server-end-point channel binding of a certificate (RFC 5929 section 4.1): its hash by the hash
// of its signature algorithm, SHA-256 in place of MD5 and SHA-1. nil where the RFC defines none (Ed25519). The library's
// constructor reads the peer's certificate, which on a server is the client's.
func serverEndPoint(leaf *x509.Certificate) []byte {
	switch leaf.SignatureAlgorithm {
	case x509.MD5WithRSA, x509.SHA1WithRSA, x509.ECDSAWithSHA1,
		x509.SHA256WithRSA, x509.SHA256WithRSAPSS, x509.ECDSAWithSHA256:
		sum := sha256.Sum256(leaf.Raw)
		return sum[:]
	case x509.SHA384WithRSA, x509.SHA384WithRSAPSS, x509.ECDSAWithSHA384:
		sum := sha512.Sum384(leaf.Raw)
		return sum[:]
	case x509.SHA512WithRSA, x509.SHA512WithRSAPSS, x509.ECDSAWithSHA512:
		sum := sha512.Sum512(leaf.Raw)
		return sum[:]
	default:
		return nil
	}
}

// scramExchange is the server's side of one SCRAM conversation.
type scramExchange struct {
	cred    credential
	binding []byte // nil: -PLUS was not offered
	conv    *scram.ServerConversation
}

func (e *scramExchange) mechanisms() []string {
	if len(e.binding) > 0 {
		return []string{mechSCRAMPlus, mechSCRAM}
	}
	return []string{mechSCRAM}
}

// first answers the client-first-message. What is wrong here is the client's program, not its password.
func (e *scramExchange) first(mechanism, msg string) (string, error) {
	plus := mechanism == mechSCRAMPlus
	if !plus && mechanism != mechSCRAM || plus && len(e.binding) == 0 {
		return "", fatalf(codeProtocolViolation, "client selected an invalid SASL authentication mechanism")
	}
	flag, rest, _ := strings.Cut(msg, ",")
	authzID, _, _ := strings.Cut(rest, ",")
	switch {
	case strings.HasPrefix(flag, "p=") != plus:
		return "", fatalf(codeProtocolViolation, "malformed SCRAM message: the channel binding flag does not fit the mechanism")
	case flag == "y" && len(e.binding) > 0:
		// The client believes that we cannot bind, we offered it: somebody changed the list on its way.
		return "", fatalf(codeInvalidAuth, "SCRAM channel binding negotiation error: the client supports SCRAM channel binding "+
			"but thinks the server does not, which this server does")
	case authzID != "":
		return "", fatalf(codeUnsupported, "client uses authorization identity, but it is not supported")
	}
	server, err := scram.SHA256.NewServer(func(string) (scram.StoredCredentials, error) {
		return e.cred.StoredCredentials, nil // the role is the startup packet's; the name in here is ignored, as PostgreSQL does
	})
	if err != nil {
		return "", err
	}
	e.conv = server.NewConversation()
	if len(e.binding) > 0 {
		e.conv = server.NewConversationWithChannelBinding(scram.ChannelBinding{
			Type: scram.ChannelBindingTLSServerEndpoint, Data: e.binding,
		})
	}
	out, err := e.conv.Step(msg)
	if err != nil {
		f := fatalf(codeProtocolViolation, "malformed SCRAM message")
		f.cause = err
		return "", f
	}
	return out, nil
}

// final checks the client-final-message. ok=false is a wrong proof or binding; cause is for the log.
func (e *scramExchange) final(msg string) (out string, ok bool, cause error) {
	out, err := e.conv.Step(msg)
	if err != nil || !e.conv.Valid() || e.cred.mock {
		return "", false, err
	}
	return out, true, nil
}

// matches tells whether a clear-text password belongs to the verifier. It takes as long for a made-up one.
func (c credential) matches(password string) bool {
	if c.Iters > maxIterations {
		return false
	}
	// As PostgreSQL does: a password that SASLprep refuses is used as it stands.
	if prepared, err := stringprep.SASLprep.Prepare(password); err == nil && prepared != "" {
		password = prepared
	}
	client, err := scram.SHA256.NewClientUnprepped("", password, "")
	if err != nil {
		return false
	}
	got, err := client.GetStoredCredentialsWithError(c.KeyFactors)
	if err != nil {
		return false
	}
	same := subtle.ConstantTimeCompare(got.StoredKey, c.StoredKey) & subtle.ConstantTimeCompare(got.ServerKey, c.ServerKey)
	return same == 1 && !c.mock
}
