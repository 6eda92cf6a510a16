package postgres_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/pgtest"
	"github.com/boughdb/bough/internal/postgres"
)

func TestOldestSlot(t *testing.T) {
	c := pgtest.NewCluster(t, pgtest.Options{Extra: []string{"wal_level=logical"}})
	none := func(when string) {
		t.Helper()
		if lsn, err := postgres.OldestSlot(c.DataDir); err != nil || lsn != 0 {
			t.Fatalf("%s: %s, %v", when, lsn, err)
		}
	}
	none("without slots")
	conn := c.Conn(t, "")
	query[string](t, conn, "SELECT slot_name::text FROM pg_create_physical_replication_slot('unused')")
	query[string](t, conn, "SELECT slot_name::text FROM pg_create_logical_replication_slot('first', 'pgoutput')")
	_, err := conn.Exec(t.Context(), "CREATE TABLE public.t AS SELECT generate_series(1, 1000)")
	must(t, err)
	query[string](t, conn, "SELECT slot_name::text FROM pg_create_logical_replication_slot('second', 'pgoutput')")
	want, err := core.ParseLSN(query[string](t, conn, "SELECT min(restart_lsn)::text FROM pg_replication_slots"))
	must(t, err)
	c.Stop(t)
	if got, err := postgres.OldestSlot(c.DataDir); err != nil || got != want {
		t.Fatalf("%s, %v; the server says %s", got, err, want)
	}
	// What a crash in the middle of a slot's creation leaves.
	must(t, os.Mkdir(filepath.Join(c.DataDir, "pg_replslot", "third.tmp"), 0o700))
	state := filepath.Join(c.DataDir, "pg_replslot", "first", "state")
	raw, err := os.ReadFile(state)
	must(t, err)
	for name, damaged := range map[string][]byte{
		"empty": nil, "short": raw[:50], "flipped": append(append([]byte{}, raw[:96]...), append([]byte{raw[96] ^ 1}, raw[97:]...)...),
		"no slot": make([]byte, len(raw)), "cut": raw[:len(raw)-1],
	} {
		must(t, os.WriteFile(state, damaged, 0o600))
		if lsn, err := postgres.OldestSlot(c.DataDir); err == nil {
			t.Errorf("%s: %s", name, lsn)
		}
	}
	must(t, postgres.CleanChild(c.DataDir))
	none("in a child")
}

// TestMayHaveSubscriptions: only what is certain to have none starts without a look.
func TestMayHaveSubscriptions(t *testing.T) {
	c := pgtest.NewCluster(t, pgtest.Options{})
	signal := filepath.Join(c.DataDir, "standby.signal")
	check := func(when string, want bool) {
		t.Helper()
		if got := postgres.MayHaveSubscriptions(c.DataDir); got != want {
			t.Errorf("%s: %v", when, got)
		}
	}
	fresh := func() { t.Helper(); must(t, os.WriteFile(signal, nil, 0o600)) }
	conn := c.Conn(t, "")
	src := postgres.NewSource(conn, 0)
	never := func(want bool) {
		t.Helper()
		if got, err := src.NeverSubscribed(t.Context()); err != nil || got != want {
			t.Errorf("never subscribed: %v, %v", got, err)
		}
	}
	never(true)
	fresh()
	check("copy of a running server", true) // its WAL may hold anything
	must(t, postgres.NoteNoSubscriptions(c.DataDir))
	check("noted", false)
	must(t, postgres.CleanChild(c.DataDir))
	check("copied again", true)
	fresh()
	c.Crash(t)
	check("copy of a crashed server", true)
	must(t, os.Remove(signal))
	c.Start(t)
	c.Stop(t)
	check("started before", true)
	fresh()
	check("copy of a stopped server", false)

	must(t, os.Remove(signal))
	c.Start(t)
	conn = c.Conn(t, "")
	src = postgres.NewSource(conn, 0)
	for i := range 3 {
		_, err := conn.Exec(t.Context(), fmt.Sprintf("CREATE SUBSCRIPTION s%d CONNECTION 'host=/nowhere dbname=x' PUBLICATION p WITH (connect = false, slot_name = 'slot%d')", i, i))
		must(t, err)
	}
	_, err := conn.Exec(t.Context(), "ALTER SUBSCRIPTION s0 ENABLE")
	must(t, err)
	never(false)
	if held, err := postgres.LogicalWorkersHeld(t.Context(), conn); err != nil || held {
		t.Errorf("held: %v, %v", held, err)
	}
	if n, err := postgres.DetachSubscriptions(t.Context(), conn); err != nil || n != 3 {
		t.Errorf("detached %d, %v", n, err)
	}
	if n, err := postgres.DetachSubscriptions(t.Context(), conn); err != nil || n != 0 {
		t.Errorf("detached %d again, %v", n, err)
	}
	if n := query[int](t, conn, "SELECT count(*) FROM pg_subscription WHERE NOT subenabled AND subslotname IS NULL"); n != 3 {
		t.Errorf("%d detached subscriptions", n)
	}
	// The owner can go on with them, or drop them: nothing is asked of a publisher.
	_, err = conn.Exec(t.Context(), "DROP SUBSCRIPTION s2")
	must(t, err)
	_, err = conn.Exec(t.Context(), "ALTER SUBSCRIPTION s1 SET (slot_name = 'another')")
	must(t, err)
	_, err = conn.Exec(t.Context(), "VACUUM FULL pg_subscription") // a new file
	must(t, err)
	c.Stop(t)
	fresh()
	check("copy of a stopped server with subscriptions", true)
	must(t, os.WriteFile(filepath.Join(c.DataDir, "global", "pg_filenode.map"), []byte("damaged"), 0o600))
	check("a damaged map", true)
}
