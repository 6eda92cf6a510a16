package certs_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/boughdb/bough/internal/certs"
	"github.com/boughdb/bough/internal/core"
)

func load(t *testing.T, opt certs.Options) *certs.Store {
	t.Helper()
	s, err := certs.Load(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// dial does a verified handshake against the store's certificate.
func dial(t *testing.T, s *certs.Store, name string) error {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(read(t, s.CAFile())) {
		t.Fatal("ca.pem holds no certificate")
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: s.GetCertificate})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c, err := ln.Accept(); err == nil {
			_ = c.(*tls.Conn).HandshakeContext(context.Background())
			_ = c.Close()
		}
	}()
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", ln.Addr().String(),
		&tls.Config{RootCAs: pool, ServerName: name})
	if err == nil {
		_ = c.Close()
	}
	<-done
	return err
}

func TestFirstStartMakesAnAuthorityAndALeaf(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certs")
	s := load(t, certs.Options{Dir: dir, Domain: "db.localhost"})
	for _, name := range []string{"localhost", "db.localhost", "ep-cool-name-12345678.db.localhost", "127.0.0.1", "::1"} {
		if err := dial(t, s, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := dial(t, s, "example.com"); err == nil {
		t.Error("the leaf must not cover example.com")
	}
	for _, name := range []string{"ca.key", "server.pem"} {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, st.Mode())
		}
	}
	again := load(t, certs.Options{Dir: dir, Domain: "db.localhost"})
	if !again.Leaf().Equal(s.Leaf()) {
		t.Error("a second start must keep the leaf")
	}
}

func TestLeafIsRenewed(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	var mu sync.Mutex
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	s := load(t, certs.Options{Dir: dir, Domain: "a.test", Now: clock})
	first, ca := s.Leaf(), read(t, s.CAFile())

	other := load(t, certs.Options{Dir: dir, Domain: "b.test", Now: clock})
	if err := dial(t, other, "ep.b.test"); err != nil {
		t.Errorf("after a change of domain: %v", err)
	}
	if !bytes.Equal(ca, read(t, s.CAFile())) {
		t.Error("a change of domain must keep the authority")
	}

	// While the server runs, and with nobody restarting it.
	mu.Lock()
	now = first.NotAfter.Add(-24 * time.Hour)
	mu.Unlock()
	if _, err := s.GetCertificate(&tls.ClientHelloInfo{}); err != nil {
		t.Fatal(err)
	}
	if !s.Leaf().NotAfter.After(first.NotAfter) {
		t.Error("a leaf close to its expiry must be replaced")
	}
	if !bytes.Equal(ca, read(t, s.CAFile())) {
		t.Error("a renewal must keep the authority")
	}

	mu.Lock()
	now = now.Add(20 * 365 * 24 * time.Hour)
	mu.Unlock()
	load(t, certs.Options{Dir: dir, Domain: "a.test", Now: clock})
	if bytes.Equal(ca, read(t, s.CAFile())) {
		t.Error("an authority that ran out must be replaced")
	}
}

func TestRacingStartsAgree(t *testing.T) {
	dir := t.TempDir()
	stores := make([]*certs.Store, 8)
	var wg sync.WaitGroup
	for i := range stores {
		wg.Go(func() {
			s, err := certs.Load(t.Context(), certs.Options{Dir: dir, Domain: "db.localhost"})
			if err != nil {
				t.Error(err)
				return
			}
			stores[i] = s
		})
	}
	wg.Wait()
	for _, s := range stores {
		if s == nil || !s.Leaf().Equal(stores[0].Leaf()) {
			t.Fatal("racing starts must end with one leaf")
		}
	}
}

func TestDamagedFilesAreReplaced(t *testing.T) {
	for _, name := range []string{"server.pem", "ca.key", "ca.pem"} {
		for _, damage := range []string{"missing", "empty"} {
			t.Run(name+" "+damage, func(t *testing.T) {
				dir := t.TempDir()
				load(t, certs.Options{Dir: dir, Domain: "db.localhost"})
				path := filepath.Join(dir, name)
				if damage == "missing" {
					if err := os.Remove(path); err != nil {
						t.Fatal(err)
					}
				} else if err := os.WriteFile(path, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				s := load(t, certs.Options{Dir: dir, Domain: "db.localhost"})
				if err := dial(t, s, "localhost"); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestProvidedFiles(t *testing.T) {
	dir := t.TempDir()
	made := load(t, certs.Options{Dir: dir, Domain: "db.localhost"})
	pem := filepath.Join(dir, "server.pem")
	s := load(t, certs.Options{CertFile: pem, KeyFile: pem, Domain: "db.localhost"})
	if !s.Leaf().Equal(made.Leaf()) || s.CAFile() != "" {
		t.Error("the operator's certificate must be used as it is")
	}
	for _, opt := range []certs.Options{
		{CertFile: pem},
		{CertFile: pem, KeyFile: filepath.Join(dir, "ca.key")},
		{CertFile: pem, KeyFile: filepath.Join(dir, "absent")},
		{Dir: dir, Domain: "not a domain"},
		{Dir: dir},
	} {
		if _, err := certs.Load(t.Context(), opt); !core.IsKind(err, core.KindInvalid) {
			t.Errorf("%+v: got %v, want a KindInvalid error", opt, err)
		}
	}
}
