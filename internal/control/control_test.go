package control

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/postgres"
)

func TestSizes(t *testing.T) {
	p := func(v float64) *float64 { return &v }
	defaults := core.EndpointDefaults{MinCU: 0.25, MaxCU: 2}
	for _, tc := range []struct {
		lo, hi      *float64
		provisioner string
		min, max    float64
		wrong       string
	}{
		{nil, nil, provisionerScaled, 0.25, 2, ""},
		{p(1), nil, provisionerScaled, 1, 2, ""},
		{p(4), nil, provisionerScaled, 4, 4, ""},
		{nil, p(0.25), provisionerScaled, 0.25, 0.25, ""},
		{p(2), p(1), provisionerScaled, 0, 0, "must not be greater"},
		{p(0.1), p(1), provisionerScaled, 0, 0, "at least 0.25"},
		{p(-1), nil, provisionerScaled, 0, 0, "at least 0.25"},
		{p(1), p(1e9), provisionerScaled, 0, 0, "at most"},
		{p(1), p(2), provisionerFixed, 0, 0, "fixed size"},
		{p(1), p(1), provisionerFixed, 1, 1, ""},
		{nil, p(1), provisionerFixed, 1, 1, ""},
		{nil, nil, provisionerFixed, 0.25, 0.25, ""},
	} {
		lo, hi, err := startSize(tc.lo, tc.hi, defaults, tc.provisioner)
		if tc.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), tc.wrong) {
				t.Errorf("%v–%v: %v, want %q", tc.lo, tc.hi, err, tc.wrong)
			}
		} else if err != nil || lo != tc.min || hi != tc.max {
			t.Errorf("got %v–%v (%v), want %v–%v", lo, hi, err, tc.min, tc.max)
		}
	}
}

func TestSettings(t *testing.T) {
	for sent, want := range map[string]string{
		`{}`:   "",
		`null`: "",
		`{"allowed_ips":{"ips":[]},"hipaa":false,"quota":{"active_time_seconds":0}}`:        "",
		`{"maintenance_window":{"weekdays":[1,7],"start_time":"23:00","end_time":"00:00"}}`: "",
		`{"maintenance_window":{"weekdays":[8],"start_time":"23:00","end_time":"00:00"}}`:   "from 1 (Monday)",
		`{"maintenance_window":{"weekdays":[1],"start_time":"24:00","end_time":"00:00"}}`:   "23:59",
		`{"maintenance_window":{}}`: "needs weekdays",
		`{"allowed_ips":{"ips":["10.0.0.1","::1","10.0.0.0/8","10.0.0.1-10.0.0.9"],"protected_branches_only":true}}`: "",
		`{"allowed_ips":{"ips":["10.0.0.1","10.0.0.300"]}}`:                                                          `"10.0.0.300" is not an IP address`,
		`{"allowed_ips":{"ips":["10.0.0.1,10.0.0.2"]}}`:                                                              "settings.allowed_ips.ips[0]",
		`{"allowed_ips":["10.0.0.1"]}`:                                                                               "settings.allowed_ips must be an object",
		`{"block_public_connections":true}`:                                                                          "",
		`{"block_vpc_connections":true}`:                                                                             "settings.block_vpc_connections is not supported",
		`{"hipaa":true}`:                                                                                             "settings.hipaa is not supported",
		`{"audit_log_level":"base"}`:                                                                                 "",
		`{"enable_logical_replication":true}`:                                                                        "",
		`{"quota":{"logical_size_bytes":1}}`:                                                                         "",
		`{"quota":{"logical_size_bytes":-1}}`:                                                                        "must not be negative",
		`{"hipaa":"yes"}`:                                                                                            "hipaa must not be a string",
		`[]`:                                                                                                         "must be an object",
	} {
		merged, err := mergeSettings(json.RawMessage(defaultSettings), json.RawMessage(sent))
		if want == "" {
			var back map[string]any
			if err != nil || json.Unmarshal(merged, &back) != nil || back["allowed_ips"] == nil {
				t.Errorf("%s: %s, %v", sent, merged, err)
			}
		} else if err == nil || !strings.Contains(core.UserMessage(err), want) {
			t.Errorf("%s: %v, want %q", sent, err, want)
		}
	}
}

func TestAccess(t *testing.T) {
	settings := json.RawMessage(defaultSettings)
	for _, step := range []struct {
		sent, leaf, protected string // who may connect to an ordinary and to a protected branch
	}{
		{`{}`, "[] false", "[] false"},
		{`{"allowed_ips":{"ips":["10.0.0.1"]}}`, "[10.0.0.1] false", "[10.0.0.1] false"},
		{`{"allowed_ips":{"protected_branches_only":true}}`, "[] false", "[10.0.0.1] false"},
		{`{"hipaa":false,"allowed_ips":null}`, "[] false", "[10.0.0.1] false"},
		{`{"block_public_connections":true}`, "[] true", "[10.0.0.1] true"},
		{`{"block_public_connections":false,"allowed_ips":{"ips":[]}}`, "[] false", "[] false"},
	} {
		var err error
		if settings, err = mergeSettings(settings, json.RawMessage(step.sent)); err != nil {
			t.Fatal(step.sent, err)
		}
		for protected, want := range map[bool]string{false: step.leaf, true: step.protected} {
			if a, err := accessOf(settings, protected); err != nil || fmt.Sprint(a.AllowedIPs, a.PrivateOnly) != want {
				t.Errorf("%s, protected %v: %+v, %v, want %s", step.sent, protected, a, err, want)
			}
		}
	}
	if _, err := accessOf(json.RawMessage(`{"allowed_ips":{"ips":7}}`), false); err == nil {
		t.Error("settings that cannot be read let everybody in")
	}
}

func TestLogicalReplicationStaysOn(t *testing.T) {
	on, err := mergeSettings(json.RawMessage(defaultSettings), json.RawMessage(`{"enable_logical_replication":true}`))
	if err != nil || !logicalReplication(on) || logicalReplication(json.RawMessage(defaultSettings)) || logicalReplication(nil) {
		t.Fatalf("%s, %v", on, err)
	}
	for _, sent := range []string{`{}`, `{"hipaa":false}`, `{"enable_logical_replication":null}`, `{"enable_logical_replication":true}`} {
		if still, err := mergeSettings(on, json.RawMessage(sent)); err != nil || !logicalReplication(still) {
			t.Errorf("%s: %s, %v", sent, still, err)
		}
	}
	if _, err := mergeSettings(on, json.RawMessage(`{"enable_logical_replication":false}`)); !core.IsKind(err, core.KindUnprocessable) {
		t.Errorf("turned off: %v", err)
	}
	if _, err := mergeSettings(json.RawMessage(defaultSettings), json.RawMessage(`{"enable_logical_replication":false}`)); err != nil {
		t.Errorf("off stays off: %v", err)
	}
}

// builds is a machine on which nothing is installed or removed.
type builds []postgres.Build

func (b builds) Find(context.Context) ([]postgres.Build, error) { return b, nil }

func (b builds) Dumper(context.Context, int) (postgres.Dumper, error) {
	return postgres.Dumper{}, core.Errorf(core.KindUnprocessable, "", "there is none")
}

func TestMaintenanceWindow(t *testing.T) {
	for _, tc := range []struct {
		weekdays   []int
		start, end string
		now        string // 2030-01-07 is a Monday
		open       bool
	}{
		{[]int{1}, "07:00", "08:00", "2030-01-07T07:00:00Z", true},
		{[]int{1}, "07:00", "08:00", "2030-01-07T07:59:59Z", true},
		{[]int{1}, "07:00", "08:00", "2030-01-07T08:00:00Z", false},
		{[]int{1}, "07:00", "08:00", "2030-01-07T06:59:59Z", false},
		{[]int{1}, "07:00", "08:00", "2030-01-07T09:30:00+02:00", true},
		{[]int{2, 7}, "07:00", "08:00", "2030-01-07T07:30:00Z", false},
		{[]int{2, 7}, "07:00", "08:00", "2030-01-06T07:30:00Z", true},
		{[]int{7}, "23:00", "01:00", "2030-01-06T23:30:00Z", true},
		{[]int{7}, "23:00", "01:00", "2030-01-07T00:30:00Z", true},
		{[]int{7}, "23:00", "01:00", "2030-01-07T01:00:00Z", false},
		{[]int{7}, "23:00", "01:00", "2030-01-06T00:30:00Z", false},
		{[]int{1}, "23:00", "00:00", "2030-01-07T23:30:00Z", true},
		{[]int{1}, "12:00", "12:00", "2030-01-08T11:00:00Z", true},
		{[]int{1}, "12:00", "12:00", "2030-01-08T12:00:00Z", false},
		{nil, "", "", "2030-01-07T07:00:00Z", false},
	} {
		now, err := time.Parse(time.RFC3339, tc.now)
		if err != nil {
			t.Fatal(err)
		}
		if got := (maintenanceWindow{tc.weekdays, tc.start, tc.end}).open(now); got != tc.open {
			t.Errorf("%v %s–%s at %s: %v", tc.weekdays, tc.start, tc.end, tc.now, got)
		}
	}
	if w := windowOf(json.RawMessage(defaultSettings)); len(w.Weekdays) == 0 || windowOf(json.RawMessage(`{"maintenance_window":7}`)).open(time.Now()) {
		t.Errorf("%+v", w)
	}
}

func TestVersions(t *testing.T) {
	s := New(Options{Builds: builds{{Major: 15}, {Major: 16}}})
	if b, err := s.build(t.Context(), 0); err != nil || b.Major != 16 {
		t.Errorf("the default is %v (%v): want the newest", b.Major, err)
	}
	if _, err := s.build(t.Context(), 17); err == nil || !strings.Contains(err.Error(), "installed: 15, 16; to add it, run on the server's machine: bough postgres install 17") || !core.IsKind(err, core.KindInvalid) {
		t.Errorf("%v", err)
	}
	s = New(Options{Builds: builds{{Major: 15}, {Major: 17}, {Major: 18}}})
	if b, err := s.build(t.Context(), 0); err != nil || b.Major != 17 {
		t.Errorf("the default is %v (%v): want 17 when it is installed", b.Major, err)
	}
}

func TestURIs(t *testing.T) {
	binding := url.Values{"channel_binding": {"require"}}
	for want, a := range map[string]Addressing{
		"postgresql://r%20o:p%2Fw@ep-x-pooler.db.localhost/d%3Fb?channel_binding=require&sslmode=require":                      {Domain: "db.localhost", Port: 5432, Resolves: true},
		"postgresql://r%20o:p%2Fw@ep-x-pooler.db.localhost:6000/d%3Fb?channel_binding=require&sslmode=require":                 {Domain: "db.localhost", Port: 6000, Resolves: true},
		"postgresql://r%20o:p%2Fw@localhost:6000/d%3Fb?channel_binding=require&options=endpoint%3Dep-x-pooler&sslmode=require": {Domain: "db.localhost", Port: 6000},
	} {
		if got := a.uri("ep-x", "r o", "p/w", "d?b", true, url.Values{"channel_binding": binding["channel_binding"]}); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func TestKeyedLocks(t *testing.T) {
	var (
		locks keyedLocks
		inside, most,
		total int
		mu sync.Mutex
		wg sync.WaitGroup
	)
	for range 50 {
		wg.Go(func() {
			unlock, err := locks.lock(t.Context(), "a")
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			inside++
			total++
			most = max(most, inside)
			mu.Unlock()
			other, err := locks.lock(t.Context(), "b") // another key does not wait for this one
			if err != nil {
				t.Error(err)
				return
			}
			other()
			mu.Lock()
			inside--
			mu.Unlock()
			unlock()
		})
	}
	wg.Wait()
	if most != 1 || total != 50 || len(locks.held) != 0 {
		t.Errorf("%d at once, %d in all, %d locks left", most, total, len(locks.held))
	}
	unlock, err := locks.lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := locks.lock(gone, "a"); err == nil {
		t.Error("a caller that is gone got a lock that is held")
	}
	unlock()
	if len(locks.held) != 0 {
		t.Error("a lock stays")
	}
}

func TestCrashLimit(t *testing.T) {
	var l crashLog
	now := time.Now()
	for i := range crashLimit {
		if l.tooMany("a", now.Add(time.Duration(i)*time.Second)) {
			t.Errorf("crash %d is one too many", i+1)
		}
	}
	if !l.tooMany("a", now.Add(crashWindow/2)) || l.tooMany("b", now) {
		t.Error("the limit does not count by compute")
	}
	if l.tooMany("a", now.Add(3*crashWindow)) {
		t.Error("old crashes count")
	}
}
