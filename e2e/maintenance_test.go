package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/boughdb/bough/sdk"
)

// TestMaintenanceWindow restarts a compute that never sleeps and runs outdated settings, inside of the window and once.
func TestMaintenanceWindow(t *testing.T) {
	s := start(t, "--reconcile-every", "200ms")
	p := s.project(t)
	now := time.Now().UTC()
	window := func(begin time.Time) {
		t.Helper()
		body := `{"project":{"settings":{"maintenance_window":{"weekdays":[1,2,3,4,5,6,7],"start_time":"` + begin.Format("15:04") +
			`","end_time":"` + begin.Add(4*time.Hour).Format("15:04") + `"}}}}`
		if r := s.raw(t, "", "PATCH", "/projects/"+p.ID, body); r.status != 200 {
			t.Fatalf("%d %s", r.status, r.message)
		}
	}
	window(now.Add(12 * time.Hour))
	pid := s.postmaster(t, p.Branch)
	// Another version of Bough might want another value; no call of the API leaves a compute with an old one.
	if _, err := s.controlDB(t).Exec(t.Context(), `UPDATE endpoints SET pg_settings = '{"max_prepared_transactions": "7"}' WHERE id = $1`, p.Endpoint); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second) // five looks: that nothing happens cannot be waited for
	if got := s.postmaster(t, p.Branch); got != pid {
		t.Error("restarted outside of the window")
	}
	window(now.Add(-time.Hour))
	deadline := time.Now().Add(opLimit)
	for {
		var shown string
		conn, err := s.tryConnect(t, p.URI)
		if err == nil { // the restart may cut the session
			err = conn.QueryRow(t.Context(), "SHOW max_prepared_transactions").Scan(&shown)
		}
		if err == nil && shown == "7" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the compute is not restarted")
		}
		time.Sleep(pollEvery)
	}
	s.settled(t)
	pid = s.postmaster(t, p.Branch)
	time.Sleep(time.Second) // as above
	if got := s.postmaster(t, p.Branch); got != pid {
		t.Error("restarted twice")
	}
	ops, err := sdk.All(s.Operations(t.Context(), p.ID, sdk.OperationFilter{}))
	if err != nil {
		t.Fatal(err)
	}
	suspends := 0
	for _, op := range ops {
		if strings.HasPrefix(string(op.Action), "suspend") {
			suspends++
		}
	}
	if suspends != 1 {
		t.Errorf("%d suspensions", suspends)
	}
}
