/** One meter, one customer, two events, and the list that shows the meter: `node first_event.js ADDRESS KEY`. */
import { ApiError, createClient, everyItem, type UsageEvent } from "../src/index.js";

const [baseUrl = "http://127.0.0.1:8080", apiKey = ""] = process.argv.slice(2);
const client = createClient({ baseUrl, apiKey });

await client.POST("/api/v1/meters", {
  body: { name: "Calls", event_name: "ts_call", unit: "calls", aggregation: "sum" },
});
await client.POST("/api/v1/customers", { body: { id: "ts_customer", name: "Example" } });

const events: UsageEvent[] = [1, 2.5].map((value, index) => ({
  customer_id: "ts_customer",
  event_name: "ts_call",
  timestamp: new Date().toISOString(),
  value,
  event_id: `ts-${index}`,
}));
const { data: accepted } = await client.POST("/api/v1/usage/events", { body: { events } });

const meters: string[] = [];
for await (const meter of everyItem((cursor) =>
  client.GET("/api/v1/meters", { params: { query: { limit: 1, ...(cursor === undefined ? {} : { cursor }) } } }),
)) {
  meters.push(meter.event_name);
}

let refused: string | undefined;
try {
  await client.GET("/api/v1/customers/{id}", { params: { path: { id: "nobody" } } });
} catch (error) {
  if (!(error instanceof ApiError)) throw error;
  refused = `${error.status} ${error.code}`;
}
console.log(JSON.stringify({ accepted: accepted?.accepted, meters, refused }));
