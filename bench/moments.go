package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/sdk"
)

// moments: branches of past moments, by position and by time, of a parent that wrote at a moderate rate and now is idle or
// goes on; and what history costs the parent.
func (b *bench) moments(ctx context.Context) ([]row, error) {
	if err := b.resize(ctx, b.main, machineCU(), machineCU()); err != nil {
		return nil, err
	}
	if err := b.firstRow(ctx, b.main.uri); err != nil {
		return nil, err
	}
	load, err := b.startLoad(ctx, b.main.uri)
	if err != nil {
		return nil, err
	}
	var marks []time.Time
	var places []string
	conn, err := pgx.Connect(ctx, "host="+b.socket(b.main)+" user="+postgres.AdminRole+" dbname=postgres")
	if err != nil {
		load.stop()
		return nil, err
	}
	defer conn.Close(ctx)
	for range 3 * b.seconds {
		var place string
		if err := conn.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text", pgx.QueryExecModeSimpleProtocol).Scan(&place); err != nil {
			load.stop()
			return nil, err
		}
		marks, places = append(marks, time.Now()), append(places, place)
		if err := sleep(ctx, time.Second); err != nil {
			load.stop()
			return nil, err
		}
	}
	measure := func() (byPlace, byTime series, err error) {
		for range b.rounds {
			i := rand.IntN(len(marks))
			d, err := b.momentOnce(ctx, sdk.BranchCreate{ParentID: &b.main.branch, ParentLSN: &places[i]})
			if err != nil {
				return nil, nil, err
			}
			byPlace = append(byPlace, d)
			if d, err = b.momentOnce(ctx, sdk.BranchCreate{ParentID: &b.main.branch, ParentTimestamp: &marks[i]}); err != nil {
				return nil, nil, err
			}
			byTime = append(byTime, d)
		}
		return byPlace, byTime, nil
	}
	busyPlace, busyTime, err := measure()
	load.stop()
	if err != nil {
		return nil, err
	}
	place, at, err := measure()
	if err != nil {
		return nil, err
	}
	cost, err := b.historyCost(ctx)
	const aim = "p50 ≤ 500 ms"
	return append([]row{
		{"branch of a moment, by LSN, parent idle", place.String(), "", "", "–", aim},
		{"branch of a moment, by time, parent idle", at.String(), "", "", "–", aim},
		{"branch of a moment, by LSN, under pgbench -c 8", busyPlace.String(), "", "", "–", ""},
		{"branch of a moment, by time, under pgbench -c 8", busyTime.String(), "", "", "–", ""},
	}, cost...), err
}

// momentOnce measures a branch of a moment from the call to its first row, and deletes it.
func (b *bench) momentOnce(ctx context.Context, at sdk.BranchCreate) (time.Duration, error) {
	var branch string
	d, err := timed(func() error {
		created, err := b.client.CreateBranch(ctx, b.main.project, sdk.BranchCreateRequest{Branch: &at, Endpoints: &[]api.BranchCreateEndpoint{{Type: api.ReadWrite}}})
		if err != nil {
			return err
		}
		branch = created.Branch.ID
		return b.firstRow(ctx, (*created.ConnectionUris)[0].ConnectionURI)
	})
	if err != nil {
		return d, err
	}
	out, err := b.client.DeleteBranch(ctx, b.main.project, branch)
	if err == nil {
		_, err = b.client.WaitForOperations(ctx, out.Operations, nil)
	}
	return d, err
}

// historyCost: pgbench with history and without, in turns on the same branch.
func (b *bench) historyCost(ctx context.Context) ([]row, error) {
	var sum [2]float64
	const turns = 3
	for range turns {
		for i, retention := range []int64{86400, 0} {
			if _, err := b.client.UpdateProject(ctx, b.main.project, sdk.ProjectUpdate{HistoryRetentionSeconds: &retention}); err != nil {
				return nil, err
			}
			if err := sleep(ctx, 3*time.Second); err != nil { // what was kept goes
				return nil, err
			}
			tps, err := b.pgbench(ctx, b.main.uri)
			if err != nil {
				return nil, err
			}
			sum[i] += tps / turns
		}
	}
	return []row{{"pgbench -c 8 with history", strconv.Itoa(int(sum[0])) + " TPS", strconv.Itoa(int(sum[1])) + " TPS", "without", fmt.Sprintf("%.2f ×", sum[0]/sum[1]), "≥ 0.9 ×"}}, nil
}
