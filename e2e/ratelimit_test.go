package e2e

import (
	"strconv"
	"testing"

	"github.com/boughdb/bough/sdk"
)

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
