package local

import "testing"

// A command's name is in parentheses and may hold anything.
func TestParseStat(t *testing.T) {
	const tail = " S 7 8 9 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 1000 2000"
	for _, name := range []string{"postgres", "a b", "x) S 1 (y", "((", ""} {
		st, err := parseStat("42 (" + name + ")" + tail)
		if err != nil || st.state != 'S' || st.ppid != 7 || st.session != 9 || st.startTicks != 123456 {
			t.Errorf("%q: %+v, err = %v", name, st, err)
		}
	}
	for _, bad := range []string{"", "42", "42 (x)", "42 (x) S 1", "42 (x) SS" + tail} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
