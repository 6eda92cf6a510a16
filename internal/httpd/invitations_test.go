package httpd

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/boughdb/bough/internal/control"
	"github.com/boughdb/bough/internal/core"
)

// guesses counts the tokens that reach the use cases.
type guesses struct {
	desk
	tried int
}

func (g *guesses) Invitation(context.Context, string) (core.Invitation, error) {
	g.tried++
	return core.Invitation{}, core.NotFoundf("no such invitation")
}

func (g *guesses) AcceptInvitation(context.Context, string, string) (control.Welcome, error) {
	g.tried++
	return control.Welcome{}, core.NotFoundf("no such invitation")
}

func TestInvitationsAreNotGuessed(t *testing.T) {
	at := time.Unix(1e9, 0)
	g := &guesses{}
	srv, _ := newDoor(t, &g.desk, func(o *Options) {
		o.UseCases = g
		o.Now = func() time.Time { return at }
	})
	try := func(method string) (status int, wait string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+"/invitation?token=abc", strings.NewReader("token=abc&name=x"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(body), "<h1>") {
			t.Errorf("%s: %s, %v", method, body, err)
		}
		return resp.StatusCode, resp.Header.Get("Retry-After")
	}
	for i := range guestQuota.Calls {
		if status, _ := try([]string{"GET", "POST"}[i%2]); status != 404 {
			t.Fatalf("call %d: %d", i, status)
		}
	}
	for _, method := range []string{"GET", "POST"} {
		if status, wait := try(method); status != 429 || wait != "2" {
			t.Errorf("%s, one too many: %d, Retry-After %q", method, status, wait)
		}
	}
	if g.tried != guestQuota.Calls {
		t.Errorf("%d tokens were looked up", g.tried)
	}
	at = at.Add(2 * time.Second)
	if status, _ := try("GET"); status != 404 {
		t.Errorf("later: %d", status)
	}
	for addr, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "::ffff:192.0.2.7": "192.0.2.7", "2001:db8:1:2:3::4": "2001:db8:1:2::/64", "fe80::1%eth0": "fe80::/64", "@": "@",
	} {
		if got := network(addr); got != want {
			t.Errorf("%s is of %s, want %s", addr, got, want)
		}
	}
}
