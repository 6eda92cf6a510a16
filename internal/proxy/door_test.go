package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"go.uber.org/goleak"

	"github.com/boughdb/bough/internal/certs"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/pgtest"
	"github.com/boughdb/bough/internal/postgres"
)

const (
	testEndpoint = "ep-test-door-12345678"
	testDomain   = "db.localhost"
	testRole     = "neondb_owner"
	testDatabase = "neondb"
	testPassword = "npg_abcDEF123456"
)

func TestMain(m *testing.M) {
	code := pgtest.Run(m)
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// directory is a Directory with one endpoint, whose compute is whatever wake says.
type directory struct {
	mu        sync.Mutex
	target    Target
	verifiers map[string]string
	catalog   func(ctx context.Context, role string) (string, error) // fresh reads; nil: none
	wake      func(ctx context.Context) (string, error)

	wakes, fresh, resolved atomic.Int32
}

func (d *directory) Resolve(_ context.Context, id string) (Target, error) {
	d.resolved.Add(1)
	d.mu.Lock()
	defer d.mu.Unlock()
	if id != d.target.EndpointID {
		return Target{}, core.NotFoundf("endpoint %s not found", id)
	}
	return d.target, nil
}

func (d *directory) Verifier(ctx context.Context, _, role string, fresh bool) (string, bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if fresh {
		d.fresh.Add(1)
		if d.catalog == nil {
			return "", false, errors.New("no catalog")
		}
		v, err := d.catalog(ctx, role)
		return v, v != "", err
	}
	v, ok := d.verifiers[role]
	return v, ok, nil
}

func (d *directory) Wake(ctx context.Context, _ string) (string, error) {
	d.wakes.Add(1)
	d.mu.Lock()
	wake := d.wake
	d.mu.Unlock()
	return wake(ctx)
}

func (d *directory) setWake(wake func(context.Context) (string, error)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wake = wake
}

func (d *directory) setTarget(change func(*Target)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(&d.target)
}

// door is a running Server with what a client needs to use it.
type door struct {
	*Server
	dir   *directory
	certs *certs.Store
	roots *x509.CertPool
	port  int
}

func verifier(t testing.TB, password string) string {
	t.Helper()
	v, err := postgres.ScramVerifier(password)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func openDoor(t testing.TB, change func(*Options)) *door {
	t.Helper()
	store, err := certs.Load(t.Context(), certs.Options{Dir: t.TempDir(), Domain: testDomain})
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(store.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	d := &door{certs: store, roots: x509.NewCertPool()}
	d.roots.AppendCertsFromPEM(pem)
	d.dir = &directory{
		target:    Target{EndpointID: testEndpoint, ProjectID: "p", BranchID: "br"},
		verifiers: map[string]string{testRole: verifier(t, testPassword)},
		wake: func(context.Context) (string, error) {
			return "", core.Errorf(core.KindUnavailable, "", "no compute in this test")
		},
	}
	opt := Options{
		Addr: "127.0.0.1:0", Directory: d.dir, Domain: testDomain, GetCertificate: store.GetCertificate,
		HandshakeTimeout: 10 * time.Second, ConnectTimeout: 30 * time.Second,
	}
	if change != nil {
		change(&opt)
	}
	d.Server = New(opt)
	if err := d.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.stop(t) })
	d.port = d.Addr().(*net.TCPAddr).Port
	return d
}

func (d *door) stop(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := d.Stop(ctx); err != nil {
		t.Error(err)
	}
	if st := d.Stats(); st.Open != 0 || st.Sessions != 0 {
		t.Errorf("after Stop: %+v", st)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.keys) != 0 || len(d.sessions) != 0 {
		t.Errorf("after Stop %d keys and %d endpoints are left", len(d.keys), len(d.sessions))
	}
}

// serves puts a cluster behind the door.
func (d *door) serves(c *pgtest.Cluster) *door {
	d.dir.setWake(func(context.Context) (string, error) { return socketPath(c), nil })
	return d
}

func socketPath(c *pgtest.Cluster) string { return filepath.Join(c.SocketDir, ".s.PGSQL.5432") }

// config is pgx's configuration for a connection by the endpoint's host name, all checks on.
func (d *door) config(t testing.TB, params string) *pgx.ConnConfig {
	t.Helper()
	return d.configFor(t, testEndpoint+"."+testDomain, testRole, testPassword, "sslmode=verify-full channel_binding=require "+params)
}

func (d *door) configFor(t testing.TB, host, role, password, params string) *pgx.ConnConfig {
	t.Helper()
	cfg, err := pgx.ParseConfig(fmt.Sprintf("host=%s port=%d user=%s password='%s' dbname=%s sslrootcert=%s %s",
		host, d.port, role, password, testDatabase, d.certs.CAFile(), params))
	if err != nil {
		t.Fatal(err)
	}
	cfg.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"127.0.0.1"}, nil }
	return cfg
}

func (d *door) connect(t testing.TB, params string) *pgx.Conn {
	t.Helper()
	return connect(t, d.config(t, params))
}

func connect(t testing.TB, cfg *pgx.ConnConfig) *pgx.Conn {
	t.Helper()
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeConn(conn) })
	return conn
}

func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

func query[T any](t testing.TB, conn *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// refusal connects and returns the server's error, which there must be.
func refusal(t testing.TB, cfg *pgx.ConnConfig) *pgconn.PgError {
	t.Helper()
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err == nil {
		closeConn(conn)
		t.Fatal("the connection was accepted")
	}
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		t.Fatalf("got %v, want an error of the server", err)
	}
	return pgErr
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("still not true: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// wire is a client that speaks the protocol by hand.
type wire struct {
	net.Conn
	t testing.TB
}

func (d *door) dial(t testing.TB) *wire {
	t.Helper()
	conn, err := net.Dial("tcp", d.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { _ = conn.Close() })
	return &wire{Conn: conn, t: t}
}

// dialTLS asks for TLS with an SSLRequest. name "" sends no SNI.
func (d *door) dialTLS(t testing.TB, name string) *wire {
	t.Helper()
	w := d.dial(t)
	w.put([]byte{0, 0, 0, 8, 4, 210, 22, 47})
	if b := w.take(1); b[0] != 'S' {
		t.Fatalf("SSLRequest: got %q", b)
	}
	c := tls.Client(w.Conn, &tls.Config{ServerName: name, InsecureSkipVerify: name == "", RootCAs: d.roots})
	if err := c.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.Conn = c
	return w
}

func (w *wire) put(b []byte) {
	w.t.Helper()
	if _, err := w.Write(b); err != nil {
		w.t.Fatal(err)
	}
}

func (w *wire) send(msgs ...pgproto3.FrontendMessage) {
	w.t.Helper()
	var buf []byte
	for _, m := range msgs {
		var err error
		if buf, err = m.Encode(buf); err != nil {
			w.t.Fatal(err)
		}
	}
	w.put(buf)
}

func (w *wire) take(n int) []byte {
	w.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(w, b); err != nil {
		w.t.Fatal(err)
	}
	return b
}

func (w *wire) receive() (pgproto3.BackendMessage, error) {
	return pgproto3.NewFrontend(oneByOne{w.Conn}, nil).Receive()
}

// oneByOne keeps pgproto3 from reading past the message.
type oneByOne struct{ io.Reader }

func (o oneByOne) Read(b []byte) (int, error) { return o.Reader.Read(b[:min(1, len(b))]) }

// fatal reads the FATAL error that must come next, and the end of the stream behind it.
func (w *wire) fatal() *pgproto3.ErrorResponse {
	w.t.Helper()
	msg, err := w.receive()
	if err != nil {
		w.t.Fatal(err)
	}
	e, ok := msg.(*pgproto3.ErrorResponse)
	if !ok || e.Severity != "FATAL" {
		w.t.Fatalf("got %T %+v, want a FATAL error", msg, msg)
	}
	w.eof()
	return e
}

func (w *wire) eof() {
	w.t.Helper()
	if b, err := io.ReadAll(w); err != nil || len(b) > 0 {
		w.t.Fatalf("got %q, %v; want the end of the stream", b, err)
	}
}

func startupMessage(params map[string]string) *pgproto3.StartupMessage {
	p := map[string]string{"user": testRole, "database": testDatabase}
	for k, v := range params {
		p[k] = v
	}
	return &pgproto3.StartupMessage{ProtocolVersion: protocol30, Parameters: p}
}
