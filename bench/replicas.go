package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/sdk"
)

const lagSamples = 50 * time.Millisecond // apart

// replicas: how long after a change is durable on a primary under pgbench it is visible on its replica, what the replica
// costs the primary, and how long a replica takes to wake.
func (b *bench) replicas(ctx context.Context) (rows []row, err error) {
	cu := machineCU()
	if err := b.resize(ctx, b.main, cu, cu); err != nil {
		return nil, err
	}
	alone, err := b.pgbench(ctx, b.main.uri)
	if err != nil {
		return nil, err
	}
	made, err := b.client.CreateEndpoint(ctx, b.main.project, sdk.EndpointCreate{
		BranchID: b.main.branch, Type: api.ReadOnly, AutoscalingLimitMinCU: new(cu), AutoscalingLimitMaxCU: new(cu), SuspendTimeoutSeconds: new(int64(-1)),
	})
	if err != nil {
		return nil, err
	}
	if _, err := b.client.WaitForOperations(ctx, made.Operations, nil); err != nil {
		return nil, err
	}
	t := &target{b.main.project, b.main.branch, made.Endpoint.ID, ""}
	defer func() {
		gone, delErr := b.client.DeleteEndpoint(context.WithoutCancel(ctx), t.project, t.endpoint)
		if delErr == nil {
			_, delErr = b.client.WaitForOperations(context.WithoutCancel(ctx), gone.Operations, nil)
		}
		if err == nil {
			err = delErr
		}
	}()
	lag, err := b.lagUnderLoad(ctx, t)
	if err != nil {
		return nil, err
	}
	with, err := b.pgbench(ctx, b.main.uri)
	if err != nil {
		return nil, err
	}
	var wakes series
	for range b.rounds {
		if err := b.suspend(ctx, t); err != nil {
			return nil, err
		}
		d, err := timed(func() error {
			out, err := b.client.StartEndpoint(ctx, t.project, t.endpoint)
			if err == nil {
				_, err = b.client.WaitForOperations(ctx, out.Operations, nil)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		wakes = append(wakes, d)
	}
	return []row{
		{"replica lag under pgbench -c 8", lag.String(), "", "", "–", "p99 ≤ 100 ms"},
		{"pgbench -c 8 with a replica", tps([]float64{with}), tps([]float64{alone}), "without", fmt.Sprintf("%.2f ×", with/alone), "–"},
		{"replica started beside its idle primary", wakes.String(), "", "", "–", "–"},
	}, nil
}

// lagUnderLoad measures again and again how long it takes until the replica has replayed what is durable on the primary.
func (b *bench) lagUnderLoad(ctx context.Context, replica *target) (lag series, err error) {
	load, err := b.startLoad(ctx, b.main.uri)
	if err != nil {
		return nil, err
	}
	defer load.stop()
	var conns [2]*pgx.Conn
	for i, t := range []*target{b.main, replica} {
		if conns[i], err = pgx.Connect(ctx, "host="+b.socket(t)+" user="+postgres.AdminRole+" dbname=postgres"); err != nil {
			return nil, err
		}
		defer conns[i].Close(ctx)
	}
	if err := sleep(ctx, time.Duration(b.seconds)*time.Second); err != nil { // let checkpoints set in
		return nil, err
	}
	for end := time.Now().Add(2 * time.Duration(b.seconds) * time.Second); time.Now().Before(end); {
		var durable string
		if err := conns[0].QueryRow(ctx, "SELECT pg_current_wal_flush_lsn()::text").Scan(&durable); err != nil {
			return nil, err
		}
		began := time.Now()
		for there := false; !there; {
			if err := conns[1].QueryRow(ctx, "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", durable).Scan(&there); err != nil {
				return nil, err
			}
		}
		lag = append(lag, time.Since(began))
		if err := sleep(ctx, lagSamples); err != nil {
			return nil, err
		}
	}
	return lag, nil
}
