package httpd

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestRateLimitsAreRead(t *testing.T) {
	for text, want := range map[string]RateLimit{
		"off":          {},
		"700/m,40/s":   {Quota{700, time.Minute}, Quota{40, time.Second}},
		"700/m, 40/s ": {Quota{700, time.Minute}, Quota{40, time.Second}},
		"10/h":         {Account: Quota{10, time.Hour}},
		",5/s":         {Route: Quota{5, time.Second}},
		"5/s,5/s":      {Quota{5, time.Second}, Quota{5, time.Second}},
	} {
		if got, err := ParseRateLimit(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", ",", "700", "0/m", "-1/m", "700/d", "700/m,40/s,1/s", "on", "99999999999999/s", "off,1/s"} {
		if got, err := ParseRateLimit(text); err == nil || got != (RateLimit{}) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestRateLimit(t *testing.T) {
	var now atomic.Int64
	later := func(d time.Duration) { now.Add(int64(d)) }
	later(time.Hour)
	srv, _ := newDoor(t, &desk{}, func(o *Options) {
		o.RateLimit = RateLimit{Quota{10, time.Minute}, Quota{4, time.Second}}
		o.Now = func() time.Time { return time.Unix(0, now.Load()) }
	})
	// calls makes n of them and returns how many were carried out, and the last answer's header.
	calls := func(n int, path string) (ok int, h http.Header) {
		t.Helper()
		for range n {
			resp, e, _ := do(t, srv, call{method: "GET", path: "/api/v2" + path})
			h = resp.Header
			if resp.StatusCode == http.StatusTooManyRequests {
				wait, err := strconv.Atoi(h.Get("Retry-After"))
				if err != nil || wait < 1 || wait > 60 || h.Get("RateLimit-Remaining") != "0" || e.Code != "TOO_MANY_REQUESTS" ||
					!strings.Contains(e.Message, "too many calls") {
					t.Errorf("%v %+v", h, e)
				}
				continue
			}
			ok++
		}
		return ok, h
	}
	headers := func(h http.Header) string {
		return fmt.Sprint(h.Get("RateLimit-Limit"), " ", h.Get("RateLimit-Remaining"), " ", h.Get("X-RateLimit-Reset"), " ", h.Get("RateLimit-Policy"))
	}
	if ok, h := calls(1, "/projects"); ok != 1 || headers(h) != "10 9 6 10;w=60, 4;w=1" {
		t.Errorf("the first: %d, %s", ok, headers(h))
	}
	if ok, h := calls(6, "/projects"); ok != 3 || headers(h) != "4 0 1 10;w=60, 4;w=1" || h.Get("Retry-After") != "1" {
		t.Errorf("one route: %d, %s, %s", ok, headers(h), h.Get("Retry-After"))
	}
	if ok, _ := calls(3, "/auth"); ok != 3 {
		t.Errorf("another route: %d", ok)
	}
	later(time.Second)
	if ok, h := calls(6, "/projects"); ok != 3 || h.Get("RateLimit-Limit") != "10" || h.Get("Retry-After") != "5" {
		t.Errorf("the account: %d, %s, %s", ok, headers(h), h.Get("Retry-After")) // 4 + 3 + 3: what was refused does not count
	}
	later(6 * time.Second)
	if ok, _ := calls(4, "/projects"); ok != 1 {
		t.Errorf("after a tenth of a minute: %d", ok)
	}
	later(2 * time.Minute)
	if ok, _ := calls(4, "/projects"); ok != 4 {
		t.Errorf("after a while: %d", ok)
	}
	if resp, _, _ := do(t, srv, call{method: "GET", path: "/healthz", key: "none"}); resp.StatusCode != http.StatusOK || resp.Header.Get("RateLimit-Limit") != "" {
		t.Errorf("healthz: %d", resp.StatusCode)
	}
}

// Accounts that do not call any more take no memory, and each has limits of its own.
func TestThrottleForgets(t *testing.T) {
	th := &throttle{limit: RateLimit{Quota{2, time.Minute}, Quota{1, time.Second}}, accounts: map[string]*buckets{}}
	now := time.Unix(1e9, 0)
	for i := range 1000 {
		if wait, _, _ := th.take(fmt.Sprint(i), "x", now); wait != 0 {
			t.Fatal("an account pays for another", wait)
		}
	}
	th.take("0", "x", now.Add(2*time.Minute))
	if len(th.accounts) != 1 {
		t.Errorf("%d accounts are remembered", len(th.accounts))
	}
}
