package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/boughdb/bough/internal/core"
)

func TestRefusals(t *testing.T) {
	d := openDoor(t, nil)
	disabled := openDoor(t, nil)
	disabled.dir.setTarget(func(t *Target) { t.Disabled = true })
	elsewhere := openDoor(t, nil)
	elsewhere.dir.setTarget(func(t *Target) { t.Access.AllowedIPs = []string{"10.0.0.0/8", "192.168.1.1-192.168.1.9"} })
	host := testEndpoint + "." + testDomain
	for name, tc := range map[string]struct {
		d                       *door
		host, password, params  string
		code, message, hintPart string
	}{
		"unknown endpoint": {d, "ep-no-such-1." + testDomain, "x", "sslmode=require", "28000", `"ep-no-such-1"`, "connection string"},
		"not an id":        {d, "ep_x." + testDomain, "x", "sslmode=require", "28000", `"ep_x"`, "endpoint"},
		"not an id either": {d, "localhost", "x", "sslmode=require options='endpoint=Ep!'", "28000", `"Ep!"`, "endpoint"},
		"disagreement": {d, host, "x", "sslmode=require options='endpoint=ep-other-1'", "28000",
			`endpoint "` + testEndpoint + `" and the options ask for endpoint "ep-other-1"`, "Use one of them"},
		"two options":          {d, "localhost", "x", "sslmode=require options='endpoint=ep-a endpoint=ep-a'", "28000", "which endpoint", "options=endpoint%3D"},
		"no endpoint":          {d, "localhost", "x", "sslmode=require", "28000", "which endpoint", "options=endpoint%3D"},
		"unknown by password":  {d, "localhost", "endpoint=ep-no-such-1;x", "sslmode=require", "28000", `"ep-no-such-1"`, ""},
		"no TLS":               {d, host, testPassword, "sslmode=disable", "28000", "sslmode=require", ""},
		"disabled":             {disabled, host, testPassword, "sslmode=require", "55000", "disabled", "Enable"},
		"physical replication": {d, host, testPassword, "sslmode=require replication=true", "0A000", "physical replication", "replication=database"},
		"pooled replication":   {d, testEndpoint + "-pooler." + testDomain, testPassword, "sslmode=require replication=database", "0A000", "pooled", "-pooler"},
		"replication by password": {d, "localhost", "endpoint=" + testEndpoint + "-pooler;" + testPassword, "sslmode=require replication=database",
			"0A000", "pooled", "-pooler"},
		"address": {elsewhere, host, testPassword, "sslmode=require", "28000", "This IP address 127.0.0.1 is not allowed", ""},
	} {
		t.Run(name, func(t *testing.T) {
			e := refusal(t, tc.d.configFor(t, tc.host, testRole, tc.password, tc.params))
			if e.Code != tc.code || !strings.Contains(e.Message, tc.message) || !strings.Contains(e.Hint, tc.hintPart) {
				t.Errorf("got %s %q hint %q", e.Code, e.Message, e.Hint)
			}
		})
	}
	for _, dd := range []*door{d, disabled, elsewhere} {
		if dd.dir.wakes.Load() != 0 {
			t.Error("a refused client woke a compute")
		}
		eventually(t, "no trace is left", func() bool { return dd.Stats().Open == 0 })
	}
}

func TestDirectoryFailure(t *testing.T) {
	d := openDoor(t, func(o *Options) { o.Directory = brokenDirectory{o.Directory} })
	e := refusal(t, d.config(t, ""))
	if e.Code != "58000" || strings.Contains(e.Message, "secret") {
		t.Errorf("%+v", e)
	}
}

type brokenDirectory struct{ Directory }

func (brokenDirectory) Resolve(context.Context, string) (Target, error) {
	return Target{}, core.Wrap(context.Canceled, "secret", "secret")
}

func TestPlaintext(t *testing.T) {
	d := openDoor(t, func(o *Options) { o.AllowPlaintext = true })
	e := refusal(t, d.configFor(t, "localhost", testRole, testPassword, "sslmode=disable options='endpoint="+testEndpoint+"'"))
	if !strings.Contains(e.Message, "no compute in this test") {
		t.Errorf("the client must have been authenticated: %+v", e)
	}
	// A password must not be asked for in the clear.
	e = refusal(t, d.configFor(t, "localhost", testRole, testPassword, "sslmode=disable"))
	if e.Code != "28000" || !strings.Contains(e.Hint, "options=endpoint") {
		t.Errorf("%+v", e)
	}
}

func packet(code uint32, body string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(8+len(body)))
	return append(binary.BigEndian.AppendUint32(b, code), body...)
}

func TestMalformedStartup(t *testing.T) {
	d := openDoor(t, nil)
	oversized := binary.BigEndian.AppendUint32(nil, 10_001)
	oversized = append(oversized, bytes.Repeat([]byte{'x'}, 9_997)...)
	for name, tc := range map[string]struct {
		in         []byte
		code, text string
	}{
		"oversized":         {oversized, "08P01", "length"},
		"HTTP":              {[]byte("GET / HTTP/1.1\r\n\r\n"), "08P01", "length"},
		"too short":         {[]byte{0, 0, 0, 4, 0, 0, 0, 0}, "08P01", "length"},
		"protocol 2":        {packet(2<<16, strings.Repeat("\x00", 288)), "0A000", "unsupported frontend protocol 2.0"},
		"no terminator":     {packet(protocol30, "user\x00x"), "08P01", "layout"},
		"trailing bytes":    {packet(protocol30, "user\x00x\x00\x00more"), "08P01", "layout"},
		"empty":             {packet(protocol30, ""), "08P01", "layout"},
		"no user":           {packet(protocol30, "\x00"), "28000", "no PostgreSQL user name"},
		"no TLS":            {packet(protocol30, "user\x00x\x00\x00"), "28000", "sslmode=require"},
		"SSL with a body":   {packet(codeSSLRequest, "x"), "08P01", "twice"},
		"cancel, odd key":   {packet(codeCancelRequest, "123"), "", ""},
		"cancel, long key":  {packet(codeCancelRequest, strings.Repeat("x", 300)), "", ""},
		"cancel, other key": {packet(codeCancelRequest, "12345678"), "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := d.dial(t)
			w.put(tc.in)
			if tc.code == "" {
				w.eof()
				return
			}
			if e := w.fatal(); e.Code != tc.code || !strings.Contains(e.Message, tc.text) {
				t.Errorf("got %s %q", e.Code, e.Message)
			}
		})
	}
}

func TestEncryptionRequests(t *testing.T) {
	d := openDoor(t, nil)
	gss := packet(codeGSSENCRequest, "")

	w := d.dial(t)
	w.put(gss)
	if b := w.take(1); b[0] != 'N' {
		t.Errorf("GSSENCRequest: %q", b)
	}
	w.put(gss)
	if e := w.fatal(); e.Code != "08P01" {
		t.Errorf("second GSSENCRequest: %+v", e)
	}

	w = d.dialTLS(t, "")
	w.put(packet(codeSSLRequest, ""))
	if e := w.fatal(); e.Code != "08P01" {
		t.Errorf("SSLRequest inside TLS: %+v", e)
	}

	// Direct TLS without, and with another, ALPN protocol: a page of a browser must not get through.
	conn, err := tls.Dial("tcp", d.Addr().String(), &tls.Config{RootCAs: d.roots, ServerName: "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if e := (&wire{Conn: conn, t: t}).fatal(); e.Code != "08P01" || !strings.Contains(e.Message, "postgresql") {
		t.Errorf("no ALPN: %+v", e)
	}
	if _, err := tls.Dial("tcp", d.Addr().String(), &tls.Config{RootCAs: d.roots, ServerName: "localhost", NextProtos: []string{"http/1.1"}}); err == nil {
		t.Error("a client that speaks HTTP was let in")
	}
	if _, err := tls.Dial("tcp", d.Addr().String(), &tls.Config{RootCAs: d.roots, ServerName: "localhost", MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}); err == nil {
		t.Error("TLS 1.1 was accepted")
	}
	// Junk where a ClientHello should be.
	w = d.dial(t)
	w.put(packet(codeSSLRequest, ""))
	w.take(1)
	w.put(packet(protocol30, "user\x00x\x00\x00"))
	var b [512]byte
	if n, _ := w.Read(b[:]); n > 0 && b[0] != 0x15 { // a TLS alert or nothing
		t.Errorf("got %q", b[:n])
	}
	eventually(t, "no trace is left", func() bool { return d.Stats().Open <= 1 })
}

func TestNegotiateProtocolVersion(t *testing.T) {
	d := openDoor(t, nil)
	w := d.dialTLS(t, testEndpoint+"."+testDomain)
	w.put(packet(protocol30+9999, "user\x00x\x00_pq_.future\x001\x00\x00"))
	msg, err := w.receive()
	v, ok := msg.(*pgproto3.NegotiateProtocolVersion)
	if err != nil || !ok || v.NewestMinorProtocol != protocol30 || len(v.UnrecognizedOptions) != 1 || v.UnrecognizedOptions[0] != "_pq_.future" {
		t.Fatalf("got %T %+v, %v", msg, msg, err)
	}
	if msg, err := w.receive(); err != nil {
		t.Fatal(err)
	} else if s, ok := msg.(*pgproto3.AuthenticationSASL); !ok || strings.Join(s.AuthMechanisms, " ") != "SCRAM-SHA-256-PLUS SCRAM-SHA-256" {
		t.Errorf("got %T %+v", msg, msg)
	}
}

func TestMalformedAuthentication(t *testing.T) {
	d := openDoor(t, nil)
	sasl := func(mech, data string) []byte {
		b, _ := (&pgproto3.SASLInitialResponse{AuthMechanism: mech, Data: []byte(data)}).Encode(nil)
		return b
	}
	long, _ := (&pgproto3.PasswordMessage{Password: strings.Repeat("x", 600)}).Encode(nil)
	for name, tc := range map[string]struct {
		sni  bool
		in   []byte
		code string
	}{
		"query instead":     {true, []byte{'Q', 0, 0, 0, 5, 0}, "08P01"},
		"oversized":         {true, []byte{'p', 0x7f, 0xff, 0xff, 0xff}, "08P01"},
		"negative length":   {true, []byte{'p', 0xff, 0xff, 0xff, 0xff}, "08P01"},
		"no mechanism":      {true, []byte{'p', 0, 0, 0, 5, 'x'}, "08P01"},
		"unknown mechanism": {true, sasl("PLAIN", "x"), "08P01"},
		"plus without p":    {true, sasl(mechSCRAMPlus, "n,,n=,r=abc"), "08P01"},
		"p without plus":    {true, sasl(mechSCRAM, "p=tls-server-end-point,,n=,r=abc"), "08P01"},
		"other binding":     {true, sasl(mechSCRAMPlus, "p=tls-unique,,n=,r=abc"), "08P01"},
		"downgrade":         {true, sasl(mechSCRAM, "y,,n=,r=abc"), "28000"},
		"authzid":           {true, sasl(mechSCRAM, "n,a=other,n=,r=abc"), "0A000"},
		"junk":              {true, sasl(mechSCRAM, "n"), "08P01"},
		"long password":     {false, long, "08P01"},
		"no terminator":     {false, []byte{'p', 0, 0, 0, 5, 'x'}, "08P01"},
		"goodbye":           {true, []byte{'X', 0, 0, 0, 4}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			host := ""
			if tc.sni {
				host = testEndpoint + "." + testDomain
			}
			w := d.dialTLS(t, host)
			w.send(startupMessage(nil))
			if _, err := w.receive(); err != nil {
				t.Fatal(err)
			}
			w.put(tc.in)
			if tc.code == "" {
				_, err := w.receive()
				if err == nil {
					t.Error("a client that said goodbye got an answer")
				}
				return
			}
			if e := w.fatal(); e.Code != tc.code {
				t.Errorf("got %s %q", e.Code, e.Message)
			}
		})
	}
}

func TestHangingInTheHandshake(t *testing.T) {
	const limit = 400 * time.Millisecond
	d := openDoor(t, func(o *Options) { o.HandshakeTimeout = limit })
	for name, begin := range map[string]func(t *testing.T) *wire{
		"nothing":      func(t *testing.T) *wire { return d.dial(t) },
		"half a start": func(t *testing.T) *wire { w := d.dial(t); w.put([]byte{0, 0, 1}); return w },
		"after TLS":    func(t *testing.T) *wire { return d.dialTLS(t, "") },
		"no password": func(t *testing.T) *wire {
			w := d.dialTLS(t, "")
			w.send(startupMessage(nil))
			if _, err := w.receive(); err != nil {
				t.Fatal(err)
			}
			return w
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := begin(t)
			if e := w.fatal(); e.Code != "57014" || !strings.Contains(e.Message, "400ms") {
				t.Errorf("%+v", e)
			}
		})
	}
	t.Run("a byte now and then", func(t *testing.T) {
		w := d.dial(t)
		began := time.Now()
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for sent := 0; ; sent++ {
			<-tick.C
			if _, err := w.Write([]byte{0}); err != nil {
				break
			}
			if sent == 3 { // a length that lets the packet go on
				w.put(nil)
			}
			if time.Since(began) > 10*time.Second {
				t.Fatal("still served")
			}
		}
	})
	t.Run("in TLS", func(t *testing.T) {
		w := d.dial(t)
		w.put(packet(codeSSLRequest, ""))
		w.take(1)
		w.eof()
	})
	eventually(t, "no trace is left", func() bool { return d.Stats().Open == 0 })
}

func TestTooManyHandshakes(t *testing.T) {
	d := openDoor(t, func(o *Options) { o.MaxHandshakes = 1 })
	first := d.dialTLS(t, "") // holds the only slot
	w := d.dial(t)
	if e := w.fatal(); e.Code != "53300" {
		t.Errorf("%+v", e)
	}
	_ = first.Close()
	eventually(t, "the slot is free", func() bool { return len(d.slots) == 0 })
	if e := refusal(t, d.config(t, "")); !strings.Contains(e.Message, "no compute in this test") {
		t.Errorf("%+v", e)
	}
}

func TestListensOnBothLoopbacks(t *testing.T) {
	if ln, err := net.Listen("tcp6", "[::1]:0"); err != nil {
		t.Logf("no ::1 here: %v", err)
	} else {
		_ = ln.Close()
		d := openDoor(t, nil)
		for _, host := range []string{"127.0.0.1", "::1"} {
			conn, err := net.Dial("tcp", net.JoinHostPort(host, strings.TrimPrefix(d.Addr().String(), "127.0.0.1:")))
			if err != nil {
				t.Error(err)
				continue
			}
			_ = conn.Close()
		}
	}
	taken := openDoor(t, nil)
	s := New(Options{Addr: taken.Addr().String(), Directory: taken.dir})
	if err := s.Start(t.Context()); !core.IsKind(err, core.KindUnavailable) {
		t.Errorf("a taken port: %v", err)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}
