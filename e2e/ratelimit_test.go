package e2e

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/boughdb/bough/sdk"
)

// TestDefaultRateLimit floods a server that was told nothing about limits.
func TestDefaultRateLimit(t *testing.T) {
	s := prepare(t, "copy")
	i := slices.Index(s.args, "--rate-limit")
	s.args = slices.Delete(s.args, i, i+2)
	s.Start()
	var ok, refused atomic.Int64
	begun := time.Now()
	all(t, 200, 20, func(int) error {
		switch r := s.raw(t, "", "GET", "/regions", ""); {
		case r.header.Get("RateLimit-Policy") != "700;w=60, 40;w=1":
			return fmt.Errorf("%d %v", r.status, r.header)
		case r.status == 200:
			ok.Add(1)
		case r.status == 429 && r.header.Get("Retry-After") == "1":
			refused.Add(1)
		default:
			return fmt.Errorf("%d %v", r.status, r.header)
		}
		return nil
	})
	// 40 at once, and as many again for each second that it took.
	most := 40 + int64(math.Ceil(40*time.Since(begun).Seconds()))
	if n := ok.Load(); n < 40 || n > most {
		t.Errorf("%d carried out, %d refused in %v", n, refused.Load(), time.Since(begun))
	}
}

// TestRateLimit refuses what is too much, says when to come again, and the SDK and the command line come again.
func TestRateLimit(t *testing.T) {
	s := prepare(t, "copy", "--rate-limit", "1000/s,2/s")
	s.Start()
	ok, refused := 0, 0
	for range 20 {
		switch r := s.raw(t, "", "GET", "/projects", ""); r.status {
		case 200:
			ok++
		case 429:
			refused++
			if wait, err := strconv.Atoi(r.header.Get("Retry-After")); err != nil || wait != 1 || r.header.Get("RateLimit-Limit") != "2" || r.message == "" {
				t.Errorf("%v %s", r.header, r.message)
			}
		default:
			t.Errorf("%d %s", r.status, r.message)
		}
	}
	if ok < 2 || refused == 0 {
		t.Errorf("%d carried out, %d refused", ok, refused)
	}
	c, err := sdk.New(sdk.Options{BaseURL: s.admin.APIURL, APIKey: s.admin.APIKey})
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if _, err := c.Me(t.Context()); err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		if text, err := s.bough("projects", "list"); err != nil {
			t.Errorf("%v: %s", err, text)
		}
	}
}
