package pgtest_test

import (
	"os"
	"testing"

	"github.com/boughdb/bough/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Run(m)) }

// A crash loses nothing that was committed, and a stop is clean.
func TestClusterSurvivesCrashAndStop(t *testing.T) {
	c := pgtest.NewCluster(t, pgtest.Options{})
	if _, err := c.Conn(t, "neondb").Exec(t.Context(), "CREATE TABLE public.t AS SELECT generate_series(1, 100) AS n"); err != nil {
		t.Fatal(err)
	}
	for _, end := range []func(testing.TB){c.Crash, c.Stop} {
		end(t)
		c.Start(t)
		var n int
		if err := c.Conn(t, "neondb").QueryRow(t.Context(), "SELECT count(*) FROM public.t").Scan(&n); err != nil || n != 100 {
			t.Fatalf("rows = %d, err = %v", n, err)
		}
	}
}
