package e2e

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/boughdb/bough/sdk"
)

// from connects from another address of this machine; nil when the server lets it in.
func (s *server) from(t *testing.T, uri, addr string) error {
	t.Helper()
	cfg := s.config(t, uri)
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}
	cfg.DialFunc = func(ctx context.Context, _, to string) (net.Conn, error) { return d.DialContext(ctx, "tcp4", to) }
	ctx, cancel := context.WithTimeout(t.Context(), opLimit)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err == nil {
		_ = conn.Close(ctx)
	}
	return err
}

// TestAllowedAddresses lets clients in by their address, at once after a change, before their password and without a wake.
func TestAllowedAddresses(t *testing.T) {
	s := start(t)
	p := s.project(t)
	child := p.branch(t, "")
	set := func(body string) {
		t.Helper()
		if r := s.raw(t, "", "PATCH", "/projects/"+p.ID, `{"project":{"settings":`+body+`}}`); r.status != 200 {
			t.Fatalf("%s: %d %s", body, r.status, r.message)
		}
	}
	in := func(what, uri, addr string) {
		t.Helper()
		if err := s.from(t, uri, addr); err != nil {
			t.Errorf("%s: %s is refused: %v", what, addr, err)
		}
	}
	out := func(what, uri, addr string) {
		t.Helper()
		err := s.from(t, uri, addr)
		pgErr, ok := errors.AsType[*pgconn.PgError](err)
		if !ok || pgErr.Code != "28000" || !strings.Contains(pgErr.Message, "This IP address "+addr+" is not allowed to connect to this endpoint") {
			t.Errorf("%s: %s gets %v", what, addr, err)
		}
	}
	in("no rules", p.URI, "127.0.0.5")
	open := s.connect(t, p.URI)

	set(`{"allowed_ips":{"ips":["127.0.0.2","127.0.1.0/24","127.0.2.1-127.0.2.9","2001:db8::/32"]}}`)
	for _, addr := range []string{"127.0.0.2", "127.0.1.77", "127.0.2.9"} {
		in("a list", p.URI, addr)
	}
	for _, addr := range []string{"127.0.0.1", "127.0.2.10"} {
		out("a list", p.URI, addr)
	}
	wrong := strings.Replace(p.URI, s.config(t, p.URI).Password, "wrong", 1)
	out("a wrong password", wrong, "127.0.0.1")
	var one int
	if err := open.QueryRow(t.Context(), "SELECT 1").Scan(&one); err != nil {
		t.Errorf("an open session ended: %v", err)
	}

	p.suspend(t, child.Endpoint)
	out("asleep", child.URI, "127.0.0.1")
	if e, err := s.Endpoint(t.Context(), p.ID, child.Endpoint); err != nil || e.CurrentState != "idle" || e.PendingState != nil {
		t.Errorf("a refused client woke the compute: %+v, %v", e, err)
	}

	set(`{"allowed_ips":{"protected_branches_only":true}}`)
	in("an unprotected branch", p.URI, "127.0.0.1")
	if _, err := s.UpdateBranch(t.Context(), p.ID, p.Branch, sdk.BranchUpdate{Protected: new(true)}); err != nil {
		t.Fatal(err)
	}
	out("the protected branch", p.URI, "127.0.0.1")
	in("the protected branch", p.URI, "127.0.1.1")
	in("its child", child.URI, "127.0.0.1")

	set(`{"block_public_connections":true}`)
	in("loopback only", p.URI, "127.0.0.1")
	set(`{"block_public_connections":false,"allowed_ips":{"ips":[],"protected_branches_only":false}}`)
	in("no rules again", p.URI, "127.0.0.1")

	for body, want := range map[string]int{
		`{"allowed_ips":{"ips":["10.0.0.300"]}}`:        400,
		`{"allowed_ips":{"ips":["10.0.0.9-10.0.0.1"]}}`: 400,
		`{"hipaa":true}`:                 422,
		`{"block_vpc_connections":true}`: 422,
	} {
		if r := s.raw(t, "", "PATCH", "/projects/"+p.ID, `{"project":{"settings":`+body+`}}`); r.status != want || r.message == "" {
			t.Errorf("%s: %d %s, want %d", body, r.status, r.message, want)
		}
	}
	// The command line.
	if text, err := s.bough("projects", "update", p.ID, "--allowed-ips", "127.0.0.2"); err != nil || !strings.Contains(text, "127.0.0.2") {
		t.Errorf("%v: %s", err, text)
	}
	out("the command line", p.URI, "127.0.0.1")
	if text, err := s.bough("projects", "update", p.ID, "--allowed-ips", ""); err != nil {
		t.Errorf("%v: %s", err, text)
	}
	in("the command line", p.URI, "127.0.0.1")
}
