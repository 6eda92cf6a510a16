package core

import (
	"net/netip"
	"strings"
	"testing"
)

func TestAddressRanges(t *testing.T) {
	for entry, want := range map[string]struct{ in, out string }{
		"1.2.3.4":                  {"1.2.3.4 ::ffff:1.2.3.4", "1.2.3.5 ::1"},
		"::ffff:1.2.3.4":           {"1.2.3.4", "1.2.3.5"},
		" 1.2.0.0/16 ":             {"1.2.0.0 1.2.255.255 ::ffff:1.2.3.4", "1.3.0.0 1.1.255.255 ::1"},
		"::ffff:1.2.3.0/120":       {"1.2.3.4 ::ffff:1.2.3.9", "1.2.4.0 ::1"},
		"1.2.3.4/31":               {"1.2.3.4 1.2.3.5", "1.2.3.3 1.2.3.6"},
		"0.0.0.0/0":                {"0.0.0.0 255.255.255.255", "::1"},
		"::/0":                     {":: ffff::ffff", "1.2.3.4"},
		"2001:db8::/33":            {"2001:db8:: 2001:db8:7fff::1", "2001:db8:8000::"},
		"1.2.3.1 - 1.2.3.9":        {"1.2.3.1 1.2.3.5 1.2.3.9", "1.2.3.0 1.2.3.10"},
		"2001:db8::1-2001:db8::ff": {"2001:db8::1 2001:db8::80", "2001:db8:: 2001:db8::100 1.2.3.4"},
		"fe80::1":                  {"fe80::1%eth0", "fe80::2%eth0"},
	} {
		r, err := ParseAddressRange(entry)
		if err != nil {
			t.Errorf("%q: %v", entry, err)
			continue
		}
		for a := range strings.FieldsSeq(want.in) {
			if !r.Contains(netip.MustParseAddr(a)) {
				t.Errorf("%q does not contain %s", entry, a)
			}
		}
		for a := range strings.FieldsSeq(want.out) {
			if r.Contains(netip.MustParseAddr(a)) {
				t.Errorf("%q contains %s", entry, a)
			}
		}
	}
	for _, entry := range []string{"", "junk", "1.2.3", "1.2.3.4/33", "1.2.3.4/", "1.2.3.9-1.2.3.1", "1.2.3.4-::1", "1-2-3", "-", "1.2.3.4,1.2.3.5",
		"fe80::1%eth0", "example.com", "01.2.3.4", "::/129", strings.Repeat("1", 1000)} {
		if r, err := ParseAddressRange(entry); err == nil || !IsKind(err, KindInvalid) || len(UserMessage(err)) > 300 {
			t.Errorf("%q: %v, %v", entry, r, err)
		}
	}
}
