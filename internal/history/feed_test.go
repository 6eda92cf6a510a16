package history

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/storage"
)

// standby starts a fork as a hot standby without a primary to stream from.
func (r *rig) standby(t *testing.T, id string) *server {
	t.Helper()
	s := r.launch(t, id, "hot_standby=on")
	wait(t, func() bool {
		conn, err := postgres.Connect(t.Context(), s.socket, postgres.AdminDatabase)
		if err != nil {
			return false
		}
		s.conn = conn
		return true
	})
	t.Cleanup(func() { s.conn.Close(context.Background()) })
	return s
}

// TestFeed: a running standby is given what its stopped primary wrote, and finds it; the primary's files stay as they were.
func TestFeed(t *testing.T) {
	r := newRig(t, storage.BackendCopy, "")
	p := r.start(t, "p")
	p.exec(t, "CREATE TABLE public.t (n int, pad text)")
	p.exec(t, "SELECT pg_create_physical_replication_slot('standby', true)") // else its shutdown drops finished segments
	p.stop(t)
	r.fork(t, "p", "r", nil)
	standby := r.standby(t, "r")
	rows := 0
	for _, n := range []int{10, 60000, 10} { // within a segment, over several, within one again
		p = r.start(t, "p")
		p.exec(t, fmt.Sprintf("INSERT INTO public.t SELECT g, repeat('x', 900) FROM generate_series(1, %d) g", n))
		p.stop(t)
		rows += n
		before := hashes(t, r.wal("p"))
		replayed := standby.lsn(t, "pg_last_wal_replay_lsn()")
		var end core.LSN
		for range 2 {
			var err error
			end, err = r.dirs.Feed(t.Context(), Ref{"p", "p", 1}, Ref{"r", "r", 1}, r.control(t, "p"), replayed)
			must(t, err)
		}
		if control := r.control(t, "p"); end <= control.Checkpoint {
			t.Fatalf("fed up to %s, the last checkpoint is at %s", end, control.Checkpoint)
		}
		began := time.Now()
		standby.exec(t, "SELECT pg_reload_conf()") // makes it look at once
		wait(t, func() bool { return standby.lsn(t, "pg_last_wal_replay_lsn()") >= end })
		t.Logf("replayed to %s in %v", end, time.Since(began))
		if got := standby.text(t, "SELECT count(*)::text FROM public.t"); got != fmt.Sprint(rows) {
			t.Errorf("the standby has %s rows of %d", got, rows)
		}
		wantSameHashes(t, "the primary's WAL", before, hashes(t, r.wal("p")))
		names := []string{}
		for name := range segments(t, r.wal("p")) {
			names = append(names, name)
		}
		size := r.control(t, "p").SegmentSize
		last := core.WALFileName(r.control(t, "p").Timeline, (end - 1).Segment(size), size)
		for _, name := range names {
			one, err := os.Stat(filepath.Join(r.wal("p"), name))
			must(t, err)
			two, err := os.Stat(filepath.Join(r.wal("r"), name))
			if err == nil && os.SameFile(one, two) && name >= last {
				t.Errorf("segment %s, which the primary still writes, is shared", name)
			}
		}
		if tmp, _ := filepath.Glob(filepath.Join(r.wal("r"), "*.tmp")); len(tmp) > 0 {
			t.Errorf("left in the standby's folder: %v", tmp)
		}
	}
	standby.stop(t)
}
