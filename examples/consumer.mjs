// Print verdicts as they come: npm ci && node consumer.mjs localhost:9092 fifa.verdicts
import { Kafka, logLevel } from 'kafkajs';

const kafka = new Kafka({ clientId: 'example', brokers: [process.argv[2]], logLevel: logLevel.WARN });
const consumer = kafka.consumer({ groupId: 'example-node', sessionTimeout: 6000 }); // reads committed records only, as it should
await consumer.connect();
await consumer.subscribe({ topic: process.argv[3], fromBeginning: true });
await consumer.run({
  eachMessage: async ({ message }) => {
    const { id, label, fake_score } = JSON.parse(message.value); // ignore what you do not know: minor versions add fields
    console.log(JSON.stringify({ id, label, fake_score })); // id names the frame: at least once may repeat it, so write by it
  },
});
