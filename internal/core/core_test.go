package core

import (
	"errors"
	"fmt"
	"regexp"
	"testing"
)

func TestLSN(t *testing.T) {
	for _, s := range []string{"0/0", "0/1A7F730", "16/B374D848", "FFFFFFFF/FFFFFFFF"} {
		l, err := ParseLSN(s)
		if err != nil || l.String() != s {
			t.Errorf("%s became %s (%v)", s, l, err)
		}
	}
	for _, s := range []string{"", "/", "1", "1/", "/1", "0/123456789", "g/1", "1/2/3", " 1/2", "-1/2"} {
		if l, err := ParseLSN(s); !IsKind(err, KindInvalid) {
			t.Errorf("%q became %s (%v)", s, l, err)
		}
	}
}

func TestWALFileNames(t *testing.T) {
	const mib = 1 << 20
	for _, tc := range []struct {
		lsn  string
		size uint64
		want string
	}{
		{"0/1000000", 16 * mib, "000000020000000000000001"},
		{"16/B374D848", 16 * mib, "0000000200000016000000B3"},
		{"1/0", 64 * mib, "000000020000000100000000"},
		{"0/FFFFFFFF", mib, "000000020000000000000FFF"},
	} {
		l, err := ParseLSN(tc.lsn)
		if err != nil {
			t.Fatal(err)
		}
		name := WALFileName(2, l.Segment(tc.size), tc.size)
		if name != tc.want {
			t.Errorf("%s with segments of %d bytes is in %s, want %s", tc.lsn, tc.size, name, tc.want)
		}
		if tl, seg, ok := ParseWALFileName(name, tc.size); !ok || tl != 2 || seg != l.Segment(tc.size) {
			t.Errorf("%s is read as timeline %d, segment %d (%v)", name, tl, seg, ok)
		}
	}
	for _, name := range []string{"", "00000002.history", "000000020000000000000001.partial", "00000002000000000000000g", "000000010000000000001000"} {
		if _, _, ok := ParseWALFileName(name, 16*mib); ok {
			t.Errorf("%q counts as a segment", name)
		}
	}
}

func TestIDs(t *testing.T) {
	for what, tc := range map[string]struct {
		make func() string
		form string
	}{
		"project":  {NewProjectID, `^[a-z]+-[a-z]+-[0-9]{8}$`},
		"branch":   {NewBranchID, `^br-[a-z]+-[a-z]+-[a-z0-9]{8}$`},
		"endpoint": {NewEndpointID, `^ep-[a-z]+-[a-z]+-[a-z0-9]{8}$`},
		"org":      {NewOrgID, `^org-[a-z]+-[a-z]+-[0-9]{8}$`},
		"uuid":     {NewUUID, `^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`},
	} {
		seen := map[string]bool{}
		for range 1000 {
			id := tc.make()
			if !regexp.MustCompile(tc.form).MatchString(id) || !ValidID(id) {
				t.Fatalf("%s id %q", what, id)
			}
			seen[id] = true
		}
		if len(seen) < 1000 {
			t.Errorf("%s ids repeat: %d of 1000 differ", what, len(seen))
		}
	}
	if !regexp.MustCompile(`^npg_[A-Za-z0-9]{12}$`).MatchString(NewPassword()) || !regexp.MustCompile(`^napi_[a-z0-9]{64}$`).MatchString(NewKeySecret()) {
		t.Error("secrets have another form")
	}
	for _, id := range []string{"", "A", "a_b", "a/b", "..", "a b", "ä", string(make([]byte, 61))} {
		if ValidID(id) {
			t.Errorf("%q counts as an id", id)
		}
	}
}

func TestErrors(t *testing.T) {
	cause := errors.New("password=secret")
	err := fmt.Errorf("more: %w", Wrap(cause, "room.act", "look there"))
	if KindOf(err) != KindInternal || UserMessage(err) != "internal error" || !errors.Is(err, cause) {
		t.Errorf("%v", err)
	}
	named := Wrap(NotFoundf("branch %q not found", "b"), "room.act", "")
	if KindOf(named) != KindNotFound || UserMessage(named) != `branch "b" not found` {
		t.Errorf("%v", named)
	}
	if Wrap(nil, "room.act", "") != nil || UserMessage(cause) != "internal error" {
		t.Error("nil or an unknown error is shown")
	}
}
