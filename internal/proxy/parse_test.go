package proxy

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/xdg-go/scram"

	"github.com/boughdb/bough/internal/core"
)

func TestParseOptions(t *testing.T) {
	for in, want := range map[string]endpointOptions{
		"":                                    {},
		"endpoint=ep-a":                       {endpoint: "ep-a"},
		"project=ep-a":                        {endpoint: "ep-a"},
		"  endpoint=ep-a\t-c a=b ":            {endpoint: "ep-a", rest: "-c a=b"},
		"endpoint=ep-a endpoint=ep-a":         {},
		"endpoint=ep-a project=ep-b -c a=b":   {rest: "-c a=b"},
		"-c endpoint=ep-a -c a=b":             {endpoint: "ep-a", rest: "-c a=b"},
		`-c search_path=a\ b`:                 {rest: `-c search_path=a\ b`},
		`-c a=endpoint=x\ endpoint=y`:         {rest: `-c a=endpoint=x\ endpoint=y`},
		"neon_lsn:0/1 -c neon_x=1 --neon-x=1": {},
		"-cneon_x=1 -c":                       {rest: "-c"},
		`endpoint=ep-a\`:                      {endpoint: "ep-a"},
	} {
		if got := parseOptions(in); got != want {
			t.Errorf("%q: got %+v, want %+v", in, got, want)
		}
	}
}

func TestFindRoute(t *testing.T) {
	const a, b = "ep-a-1", "ep-b-2"
	for _, tc := range []struct {
		sni, option string
		want        route
		bad         bool
	}{
		{"", "", route{}, false},
		{"localhost", "", route{}, false},
		{"db.localhost", "", route{}, false},
		{"ep-a-1.db.localhost.evil.test", "", route{}, false},
		{"ep-a-1xdb.localhost", "", route{}, false},
		{"ep-a-1.db.localhost", "", route{a, false}, false},
		{"EP-A-1.DB.Localhost.", "", route{a, false}, false},
		{"ep-a-1.region.db.localhost", "", route{a, false}, false},
		{"ep-a-1-pooler.db.localhost", "", route{a, true}, false},
		{"ep-a-1-pooler.db.localhost", a, route{a, true}, false},
		{"ep-a-1.db.localhost", b, route{}, true},
		{"", b + "-pooler", route{b, true}, false},
		{"localhost", "../x", route{}, true},
		{"", "-pooler", route{}, true},
		{"", strings.Repeat("a", 61), route{}, true},
	} {
		got, err := findRoute(tc.sni, testDomain, tc.option)
		if got != tc.want || (err != nil) != tc.bad {
			t.Errorf("%q %q: got %+v, %v", tc.sni, tc.option, got, err)
		}
	}
}

func TestAddresses(t *testing.T) {
	for _, tc := range []struct {
		list    string
		private bool
		addr    string
		want    bool
	}{
		{"", false, "1.2.3.4", true},
		{"1.2.3.5 1.2.0.0/16", false, "1.2.3.4", true},
		{"1.2.3.5", false, "1.2.3.4", false},
		{"1.2.3.4", false, "::ffff:1.2.3.4", true},
		{"junk 1.2.3.4/99 a-b 1-2-3", false, "1.2.3.4", false},
		{"junk 1.2.3.4", false, "1.2.3.4", true},
		{"", true, "1.2.3.4", false},
		{"1.2.3.4", true, "1.2.3.4", false},
		{"1.2.3.4", true, "10.0.0.1", true},
		{"", true, "127.0.0.2", true},
		{"", true, "::1", true},
		{"", true, "fd00::1", true},
		{"", true, "::ffff:192.168.1.1", true},
		{"", true, "2001:db8::1", false},
		{"", true, "0.0.0.0", false},
	} {
		err := refuseAddress(core.Access{AllowedIPs: strings.Fields(tc.list), PrivateOnly: tc.private}, netip.MustParseAddr(tc.addr))
		if (err == nil) != tc.want {
			t.Errorf("%q (private only: %v), %s: %v", tc.list, tc.private, tc.addr, err)
		}
	}
	if refuseAddress(core.Access{PrivateOnly: true}, netip.Addr{}) == nil || refuseAddress(core.Access{AllowedIPs: []string{"::/0", "0.0.0.0/0"}}, netip.Addr{}) == nil {
		t.Error("a client without an address is let in")
	}
}

// exchange plays the client of a SCRAM conversation with the library's.
func exchange(t *testing.T, ex *scramExchange, password string, offer []byte) (bool, error) {
	t.Helper()
	client, err := scram.SHA256.NewClient("", password, "")
	if err != nil {
		t.Fatal(err)
	}
	conv, mech := client.NewConversation(), mechSCRAM
	if offer != nil {
		mech = mechSCRAMPlus
		conv = client.NewConversationWithChannelBinding(scram.ChannelBinding{Type: scram.ChannelBindingTLSServerEndpoint, Data: offer})
	}
	c1, _ := conv.Step("")
	s1, err := ex.first(mech, c1)
	if err != nil {
		return false, err
	}
	c2, err := conv.Step(s1)
	if err != nil {
		t.Fatal(err)
	}
	s2, ok, _ := ex.final(c2)
	if ok {
		if _, err := conv.Step(s2); err != nil || !conv.Valid() {
			t.Errorf("the client does not believe the server: %v", err)
		}
	}
	return ok, nil
}

func TestSCRAM(t *testing.T) {
	cred, err := parseVerifier(verifier(t, testPassword))
	if err != nil {
		t.Fatal(err)
	}
	binding, other := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	mock := mockCredential([]byte("secret"), testEndpoint, "nobody")
	for name, tc := range map[string]struct {
		ex       scramExchange
		password string
		offer    []byte
		ok       bool
	}{
		"right":                      {scramExchange{cred: cred}, testPassword, nil, true},
		"right, binding offered":     {scramExchange{cred: cred, binding: binding}, testPassword, nil, true},
		"right, bound":               {scramExchange{cred: cred, binding: binding}, testPassword, binding, true},
		"bound to another TLS":       {scramExchange{cred: cred, binding: binding}, testPassword, other, false},
		"wrong":                      {scramExchange{cred: cred}, "wrong", nil, false},
		"unknown role":               {scramExchange{cred: mock}, testPassword, nil, false},
		"unknown role, good as real": {scramExchange{cred: credential{StoredCredentials: cred.StoredCredentials, mock: true}}, testPassword, nil, false},
	} {
		if ok, err := exchange(t, &tc.ex, tc.password, tc.offer); ok != tc.ok || err != nil {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
	if _, err := exchange(t, &scramExchange{cred: cred}, testPassword, binding); err == nil {
		t.Error("-PLUS without TLS must be refused")
	}
	again := mockCredential([]byte("secret"), testEndpoint, "nobody")
	if again.Salt != mock.Salt || len(mock.Salt) != 16 || mockCredential([]byte("secret"), testEndpoint, "nobody2").Salt == mock.Salt {
		t.Error("the salt of an unknown role must be its own, and stay")
	}
	for _, bad := range []string{"", "md5x", "SCRAM-SHA-256$", "SCRAM-SHA-256$4096:eA==$eA==:eA==", "SCRAM-SHA-256$0:eA==$x:y"} {
		if _, err := parseVerifier(bad); err == nil {
			t.Errorf("%q is no verifier", bad)
		}
	}
}

func TestUnknownRoleTakesAsLong(t *testing.T) {
	cred, err := parseVerifier(verifier(t, testPassword))
	if err != nil {
		t.Fatal(err)
	}
	took := func(c credential) time.Duration {
		began := time.Now()
		if c.matches("wrong") {
			t.Fatal("a wrong password matches")
		}
		return time.Since(began)
	}
	// The fastest of as many tries as it takes: on a busy machine either may wait for a processor.
	real, mock := time.Hour, time.Hour
	nobody := mockCredential([]byte("s"), testEndpoint, "nobody")
	for try := 0; try < 7 || real > 3*mock || mock > 3*real; try++ {
		if try == 500 {
			t.Fatalf("wrong password %v, unknown role %v", real, mock)
		}
		real, mock = min(real, took(cred)), min(mock, took(nobody))
	}
	if !cred.matches(testPassword) {
		t.Error("the right password does not match")
	}
}

func TestServerEndPoint(t *testing.T) {
	for alg, want := range map[x509.SignatureAlgorithm]int{
		x509.SHA1WithRSA: 32, x509.MD5WithRSA: 32, x509.ECDSAWithSHA256: 32, x509.SHA384WithRSAPSS: 48,
		x509.ECDSAWithSHA512: 64, x509.PureEd25519: 0,
	} {
		if got := len(serverEndPoint(&x509.Certificate{SignatureAlgorithm: alg, Raw: []byte("x")})); got != want {
			t.Errorf("%v: %d bytes, want %d", alg, got, want)
		}
	}
}

func FuzzStartup(f *testing.F) {
	f.Add(packet(protocol30, "user\x00u\x00database\x00d\x00options\x00endpoint=ep-a -c a=b\x00\x00"))
	f.Add(packet(protocol30+2, "user\x00u\x00_pq_.x\x00\x00\x00"))
	f.Add(packet(codeSSLRequest, ""))
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		p, err := readStartup(bytes.NewReader(in), nil)
		if err != nil {
			return
		}
		if len(p.body)+8 > maxStartupLen {
			t.Fatal("over the limit")
		}
		st, err := parseStartup(p)
		if err != nil {
			if asFatal(err) == nil {
				t.Fatalf("the client gets no answer to %v", err)
			}
			return
		}
		for k := range st.params {
			if strings.HasPrefix(k, "neon_") || strings.HasPrefix(k, "_pq_.") {
				t.Fatalf("%q goes to the compute", k)
			}
		}
		// What the compute gets must be what was understood here.
		out, err := (&pgproto3.StartupMessage{ProtocolVersion: protocol30, Parameters: st.params}).Encode(nil)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseStartup(startupPacket{code: binary.BigEndian.Uint32(out[4:]), body: out[8:]})
		if err != nil || again.role != st.role || again.database != st.database || again.opts.endpoint != "" {
			t.Fatalf("%+v became %+v, %v", st, again, err)
		}
	})
}

func FuzzOptions(f *testing.F) {
	for _, s := range []string{"endpoint=a -c b=c", `a\ b\\ neon_x`, "-c endpoint=x", "-c -c neon_", `\`, "project=x\vendpoint=y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		out := parseOptions(in)
		again := parseOptions(out.rest)
		if again.endpoint != "" {
			t.Fatalf("%q leaves an endpoint in %q", in, out.rest)
		}
		if _, err := parseRoute(out.endpoint); err == nil && strings.ContainsAny(out.endpoint, "/.\\ \x00") {
			t.Fatalf("%q is no id", out.endpoint)
		}
	})
}

func FuzzPasswordForm(f *testing.F) {
	f.Add("endpoint=ep-a;pw")
	f.Add("project=ep-a$p;w$")
	f.Fuzz(func(t *testing.T, in string) {
		id, pw, err := cutPasswordForm(in)
		if err == nil && (!strings.HasSuffix(in, pw) || !strings.Contains(in, id) || strings.ContainsAny(id, ";$")) {
			t.Fatalf("%q: %q, %q", in, id, pw)
		}
	})
}

func FuzzSCRAM(f *testing.F) {
	f.Add("SCRAM-SHA-256", "n,,n=,r=abc", "c=biws,r=abc,p=AAAA")
	f.Add("SCRAM-SHA-256-PLUS", "p=tls-server-end-point,,n=*,r=abc", "c=,r=,p=")
	f.Add("SCRAM-SHA-256", "y,a=x,n=,r=", ",,,")
	cred := mockCredential([]byte("s"), testEndpoint, "r")
	cred.mock = false
	f.Fuzz(func(t *testing.T, mech, first, final string) {
		ex := scramExchange{cred: cred, binding: []byte("binding")}
		if _, err := ex.first(mech, first); err != nil {
			if asFatal(err) == nil {
				t.Fatalf("the client gets no answer to %v", err)
			}
			return
		}
		if _, ok, _ := ex.final(final); ok {
			t.Fatal("let in without a password")
		}
	})
}

func FuzzVerifier(f *testing.F) {
	f.Add("SCRAM-SHA-256$4096:c2FsdA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")
	f.Fuzz(func(t *testing.T, in string) {
		if c, err := parseVerifier(in); err == nil && (len(c.StoredKey) != 32 || len(c.ServerKey) != 32 || c.Iters < 1 || c.Salt == "") {
			t.Fatalf("%+v", c)
		}
	})
}

func FuzzComputeStartup(f *testing.F) {
	ok := []byte{'R', 0, 0, 0, 8, 0, 0, 0, 0, 'K', 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 2, 'Z', 0, 0, 0, 5, 'I', 'N', 0}
	f.Add(ok, 3)
	f.Add([]byte{'E', 0, 0, 0, 4}, 1)
	f.Fuzz(func(t *testing.T, in []byte, step int) {
		ex := startupExchange{ownKey: newCancelKey()}
		step = max(1, step%64)
		for len(in) > 0 && !ex.ready {
			n := min(step, len(in))
			if ex.feed(in[:n]) != nil {
				return
			}
			in = in[n:]
		}
	})
}

// FuzzDoor sends anything to a whole server over a real socket: it must end the connection, and stay up.
func FuzzDoor(f *testing.F) {
	dir := &directory{
		target:    Target{EndpointID: testEndpoint},
		verifiers: map[string]string{},
		wake:      func(context.Context) (string, error) { return "", core.Errorf(core.KindUnavailable, "", "none") },
	}
	d := &door{Server: New(Options{Addr: "127.0.0.1:0", Directory: dir, Domain: testDomain, AllowPlaintext: true,
		HandshakeTimeout: 100 * time.Millisecond})}
	if err := d.Start(context.Background()); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = d.Stop(context.Background()) })
	f.Add(packet(protocol30, "user\x00u\x00options\x00endpoint="+testEndpoint+"\x00\x00"))
	f.Add(append(packet(codeGSSENCRequest, ""), packet(codeSSLRequest, "")...))
	f.Add([]byte{tlsRecordTag, 3, 1, 0, 1, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		w := d.dial(t)
		_, _ = w.Write(in)
		if _, err := io.Copy(io.Discard, w); err != nil && errors.Is(err, context.DeadlineExceeded) {
			t.Fatal("the connection hangs")
		}
		_ = w.Close()
	})
}
